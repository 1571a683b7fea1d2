"""How many requests go out at once, and how fast.

This room knows limits, queues and what answers say about the server's limits. It must not know how
a request is sent, retried or recorded, nor anything of symbolicai.
"""
