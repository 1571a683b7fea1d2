"""What is counted, logged and traced of each call.

This room knows records, statistics, events and spans. It must not know how a call is made or paced,
nor anything of symbolicai.
"""
