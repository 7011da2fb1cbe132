"""Samplers: one file each, a registry, ``stream`` and its collector ``generate``."""
