"""What each command does; its options are in the file of its name above."""
