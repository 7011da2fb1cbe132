"""Kinds of networks: the name that a bundle records, the settings and the class behind it.

A new kind is one file with a settings dataclass and a module, and one line in ``NETWORKS``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.discriminator import Discriminator, DiscriminatorConfig, current_names
from didi.models.dit import DiT, DiTConfig
from didi.models.esm2 import Esm2, Esm2Config, Esm2DiscriminatorConfig
from didi.models.untrusted import config_from


class NetworkKind(NamedTuple):
    """A class of networks.

    Attributes:
        settings: its settings, a dataclass that a bundle stores as ``config.json``.
        network: the module, built from its settings.
        current_names: from the weights of a bundle of any age to the names of the network's state dict.
    """

    settings: type[Any]
    network: type[nn.Module]
    current_names: Callable[[Mapping[str, Tensor]], dict[str, Tensor]] = dict


NETWORKS: dict[str, NetworkKind] = {
    "dit": NetworkKind(DiTConfig, DiT),
    "dit-discriminator": NetworkKind(DiscriminatorConfig, Discriminator, current_names=current_names),
    "gpt2": NetworkKind(AutoregressiveConfig, AutoregressiveLM),
    "esm2": NetworkKind(Esm2Config, Esm2),
    "esm2-discriminator": NetworkKind(Esm2DiscriminatorConfig, Discriminator),
}

DenoiserNetwork = DiT | Esm2
"""A network with the contract of ``denoiser.Denoiser``."""


def network_of(shape: Any) -> Any:
    """A network of settings that are those of one of ``NETWORKS``, with new weights."""
    return next(one.network for one in NETWORKS.values() if one.settings is type(shape))(shape)


def kind_of(network: nn.Module) -> str:
    """The name of a network's kind.

    Raises:
        UsageError: its class is none of ``NETWORKS``.
    """
    for name, kind in NETWORKS.items():  # discriminators share a class and differ by their settings
        if type(network) is kind.network and type(network.config) is kind.settings:
            return name
    raise UsageError(
        f"a bundle holds networks of the kinds {', '.join(NETWORKS)}; got {type(network).__name__}: add it to NETWORKS"
    )


def build(kind: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor], *, source: str) -> Any:
    """A network of a kind, see ``without_weights``; settings are checked first.

    Args:
        kind: one of ``NETWORKS``.
        settings: as in ``config.json``.
        weights: of the network, against whose size the settings are checked.
        source: named in messages.

    Raises:
        UsageError: a setting does not fit.
    """
    found = NETWORKS[kind]
    config = config_from(found.settings, settings, weights, source=source)
    return without_weights(lambda: found.network(config))


def without_weights(make: Callable[[], nn.Module]) -> Any:
    """A network on the ``meta`` device, whose weights are to be assigned; a large one is made at once.

    A network with buffers that are not in its state dict (as GPT-2 in some versions of ``transformers``) has them on
    the CPU, and fresh weights.
    """
    with torch.device("meta"):
        network = make()
    if {name for name, _ in network.named_buffers()} <= set(network.state_dict()):
        return network
    return make()
