"""One method against others, in sentences."""
