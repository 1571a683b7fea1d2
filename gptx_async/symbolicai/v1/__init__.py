"""What is particular to symbolicai 1.x: its engine classes, clients and engine lookup.

This room knows private names of symbolicai 1.x. It must not be imported by code for another
generation of symbolicai.
"""
