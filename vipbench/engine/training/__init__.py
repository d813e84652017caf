"""Many cells trained as one."""
