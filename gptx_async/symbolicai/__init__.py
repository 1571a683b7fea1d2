"""Everything that imports symbolicai; it runs on the calling thread.

It knows symbolicai's engines and what they call. It must not know HTTP or the background loop's
inner workings.
"""
