"""One command for a machine with a GPU: what is right there, and what is fast; see `__main__`."""
