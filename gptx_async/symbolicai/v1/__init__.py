"""What only symbolicai 1.x has: its engine classes, their clients and the engine lookup.

This room knows private names of symbolicai 1.x. It must not know another generation. Shared modules
import it through `generation`.
"""
