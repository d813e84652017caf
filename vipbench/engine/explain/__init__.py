"""Which symptoms decided, and learned prompts as files."""
