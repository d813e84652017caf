"""Discovery of plugins, their names and their provenance."""
