"""Everything that imports symbolicai; its code runs on the calling thread.

It knows symbolicai's engines, their clients and the engine registry. It must not know HTTP or the
inside of the background loop. The rooms `v1` and `generation` know the generation of symbolicai.
"""
