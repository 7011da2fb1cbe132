"""SEDD in place of masked teachers (Lou et al. 2024, https://arxiv.org/abs/2310.16834): networks predict scores."""

from dataclasses import replace

from didi.methods.elbo import PretrainConfig


def sedd_absorb(masked: PretrainConfig) -> PretrainConfig:
    """Score entropy on masked states; recipe ``NAME-sedd-absorb`` of the teacher ``NAME``.

    Networks read their noise level, as in the public code; the weight over time is that of the masked teacher.
    """
    network = replace(masked.network, is_time_conditioned=True)
    return replace(masked, recipe=f"{masked.recipe}-sedd-absorb", process="sedd-absorb", network=network)


def sedd_uniform(masked: PretrainConfig) -> PretrainConfig:
    """Score entropy on uniformly corrupted states; recipe ``NAME-sedd-uniform`` of the teacher ``NAME``."""
    network = replace(masked.network, is_time_conditioned=True)
    return replace(
        masked,
        recipe=f"{masked.recipe}-sedd-uniform",
        process="sedd-uniform",
        schedule="log-linear-eps",
        weight="nelbo",
        network=network,
    )
