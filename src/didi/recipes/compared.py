"""Comparisons of distillation methods: equal budgets, settings found with as many trials for each method."""

from didi.methods.settings import DistillationConfig

COMPARED: dict[str, dict[str, DistillationConfig]] = {}
"""See ``didi.recipes.COMPARED``."""
