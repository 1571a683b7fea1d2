"""What is counted, logged and traced for each call.

This room knows records, statistics, costs, events and spans. It must not know how a call is made or
paced, nor anything of symbolicai.
"""
