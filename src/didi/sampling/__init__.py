"""Samplers: one file each, a registry, ``stream`` and its collector ``generate``."""

from didi.sampling.registry import SAMPLERS

__all__ = ["SAMPLERS"]
