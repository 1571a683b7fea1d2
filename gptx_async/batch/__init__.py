"""Items of a batch as greenlets on the caller's thread.

This room knows greenlets, the window of items in progress, deadlines and cancellation. It must not
know what an item does, nor anything of symbolicai.
"""
