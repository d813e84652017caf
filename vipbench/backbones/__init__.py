"""Built-in backbones. Heavy imports happen inside the factories, not here."""
