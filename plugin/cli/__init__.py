"""The command line `triton-taylorseer`, a file a command.

A command imports what it works with when it runs, not when its module is read: its help must be there at once, and
torch alone takes seconds to load.
"""
