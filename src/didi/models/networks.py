"""The registry of networks: the name in bundles, the settings class and the module of each kind.

A new kind takes one file with a settings dataclass and a module, and one line in ``NETWORKS``.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bert import Bert, BertConfig, BertDiscriminatorConfig
from didi.models.discriminator import Discriminator, DiscriminatorConfig, current_names
from didi.models.dit import DiT, DiTConfig
from didi.models.esm2 import Esm2, Esm2Config, Esm2DiscriminatorConfig
from didi.models.untrusted import config_from


class NetworkKind(NamedTuple):
    """A kind of network.

    Attributes:
        settings: settings dataclass, which a bundle stores as ``config.json``.
        network: module class; its argument is the settings.
        current_names: renames weights of older bundles to the current names of the state dict.
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
    "bert": NetworkKind(BertConfig, Bert),
    "bert-discriminator": NetworkKind(BertDiscriminatorConfig, Discriminator),
}

DenoiserNetwork = DiT | Esm2 | Bert
"""Networks that implement ``denoiser.Denoiser``."""


def network_of(shape: Any) -> Any:
    """A network with the settings ``shape`` and new weights."""
    return next(kind.network for kind in NETWORKS.values() if kind.settings is type(shape))(shape)


def kind_of(network: nn.Module) -> str:
    """The key of a network in ``NETWORKS``.

    Raises:
        UsageError: its class is not in ``NETWORKS``.
    """
    for name, kind in NETWORKS.items():  # discriminators share a class and differ by their settings
        if type(network) is kind.network and type(network.config) is kind.settings:
            return name
    raise UsageError(
        f"a bundle holds networks of the kinds {', '.join(NETWORKS)}; got {type(network).__name__}: add it to NETWORKS"
    )


def build(kind: str, settings: Mapping[str, Any], weights: Mapping[str, Tensor], *, source: str) -> Any:
    """A network from untrusted settings, without weights; see ``without_weights``.

    Args:
        kind: key in ``NETWORKS``.
        settings: contents of ``config.json``.
        weights: state dict of the network; its size limits the settings.
        source: name of the settings in messages.

    Raises:
        UsageError: a setting does not fit.
    """
    network_kind = NETWORKS[kind]
    config = config_from(network_kind.settings, settings, weights, source=source)
    return without_weights(lambda: network_kind.network(config))


def without_weights(make: Callable[[], nn.Module]) -> Any:
    """A network on the ``meta`` device, to which weights can be assigned; this takes no memory and little time.

    A network with buffers that are not in its state dict (GPT-2 in some versions of ``transformers``) is built on the
    CPU with new weights instead.
    """
    with torch.device("meta"):
        network = make()
    if {name for name, _ in network.named_buffers()} <= set(network.state_dict()):
        return network
    return make()
