"""The engine: planning, features, training, scoring, and the processes around them."""
