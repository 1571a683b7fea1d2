"""The command `gptx-async`.

This room knows arguments, terminals, files of rows and exit codes. It must not hold anything that a
program would want to call.
"""
