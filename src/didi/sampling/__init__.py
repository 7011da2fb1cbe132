"""Samplers (one file each), their registry, and the entry points ``stream`` and ``generate``."""

from didi.sampling.registry import SAMPLERS

__all__ = ["SAMPLERS"]
