"""The files of rows that `gptx-async run` reads and writes.

This room knows formats, columns and files on disk. It must not know runs, engines or symbolicai.
"""
