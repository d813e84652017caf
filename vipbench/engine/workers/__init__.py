"""The processes of a run: the driver, its workers and what they exchange."""
