"""What there is to run: cells, protocols, support sets, data checks."""
