"""What to run: suites, methods, protocols, outputs and the values in them."""
