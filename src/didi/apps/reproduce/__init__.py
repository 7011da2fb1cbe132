"""``didi reproduce``."""
