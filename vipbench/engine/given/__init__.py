"""What Python gives a run, written as files that a suite names."""
