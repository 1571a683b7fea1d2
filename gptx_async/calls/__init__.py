"""One call over all its attempts: when it is sent, retried and given up.

This room connects pacing, transport and telemetry on the background loop. It must not know who
makes the call, nor anything of symbolicai.
"""
