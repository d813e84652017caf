"""Images and texts encoded once, kept in a cache."""
