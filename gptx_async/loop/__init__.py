"""The background thread's event loop, and what it does for every call that runs on it.

It knows asyncio. It must not know HTTP, the SDK, pacing or symbolicai.
"""
