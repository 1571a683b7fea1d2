"""The background thread's event loop, and the calls that run on it.

This room knows asyncio. It must not know HTTP, the SDK, pacing or symbolicai.
"""
