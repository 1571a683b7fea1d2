"""One attempt over the wire: URLs, connections and clients, on the background loop.

This room knows HTTP, aiohttp and the SDK's clients. It must not know symbolicai, retries or pacing.
"""
