"""Discriminators as picklable values; their spectral-norm layers have classes that torch creates at run time."""

from typing import Any

import torch

from didi.errors import UsageError
from didi.models.discriminator import Discriminator


def pack(discriminator: Discriminator | None) -> dict[str, Any] | None:
    """Picklable values from which ``unpack`` restores the discriminator; None for None.

    Raises:
        UsageError: ``for_inference`` has converted the discriminator.
    """
    if discriminator is None:
        return None
    if "from_embeddings" in vars(discriminator):
        raise UsageError("a bundle is pickled or copied before for_inference converts it")
    return {
        "class": type(discriminator),
        "config": discriminator.config,
        "weights": discriminator.state_dict(),
        "is_trained": [parameter.requires_grad for parameter in discriminator.parameters()],
        "is_training": discriminator.training,
        "budget": getattr(discriminator.trunk, "budget", None),
    }


def unpack(packed: dict[str, Any] | None) -> Discriminator | None:
    """The discriminator that ``pack`` was called with."""
    if packed is None:
        return None
    with torch.device("meta"):
        network: Discriminator = packed["class"](packed["config"])
    network.load_state_dict(packed["weights"], assign=True)
    for parameter, is_trained in zip(network.parameters(), packed["is_trained"], strict=True):
        parameter.requires_grad_(is_trained)
    network.train(packed["is_training"])
    return network if packed["budget"] is None else network.at_budget(packed["budget"])
