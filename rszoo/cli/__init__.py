"""The command lines: each module parses options, calls one function and prints its result."""
