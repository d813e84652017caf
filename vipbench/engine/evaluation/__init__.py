"""From a planned cell to its record."""
