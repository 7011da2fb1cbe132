"""Uniform-state counterparts of masked teachers: UDLM (Schiff et al. 2025) and Duo (Sahoo et al. 2025)."""

from dataclasses import fields, replace

from didi.methods.duo import CurriculumConfig, DuoConfig
from didi.methods.elbo import PretrainConfig


def udlm(masked: PretrainConfig) -> PretrainConfig:
    """Uniform-state diffusion in place of masking, by its NELBO; recipe ``NAME-udlm`` of the teacher ``NAME``.

    Networks read their noise level and the loss has the weight of the NELBO, as in the public code of Duo.
    """
    network = replace(masked.network, is_time_conditioned=True)
    return replace(masked, recipe=f"{masked.recipe}-udlm", process="uniform", weight="nelbo", network=network)


def duo(masked: PretrainConfig, curriculum: CurriculumConfig) -> DuoConfig:
    """As ``udlm``, with Duo's curriculum before; recipe ``NAME-duo`` of the teacher ``NAME``."""
    shared = {entry.name: getattr(udlm(masked), entry.name) for entry in fields(PretrainConfig)}
    return DuoConfig(**shared | {"recipe": f"{masked.recipe}-duo"}, curriculum=curriculum)
