"""Networks with new weights, for pre-training."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any

from didi.data.source import Source
from didi.diffusion import Process
from didi.errors import UsageError
from didi.methods.settings import NetworkConfig
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.dit import DiTConfig
from didi.models.esm2 import ALPHABET, Esm2Config
from didi.models.networks import DenoiserNetwork, network_of


def denoiser_shape(
    network: NetworkConfig, *, vocab_size: int, mask_id: int | None, length: int
) -> DiTConfig | Esm2Config:
    """Shape of the denoiser of ``NetworkConfig``.

    Args:
        network: settings of the network.
        vocab_size: number of symbols, the mask included.
        mask_id: index of [MASK]; None in a process without [MASK].
        length: context length L.

    Raises:
        UsageError: the kind is for proteins, and the vocabulary is not that of proteins.
    """
    symbols = {"vocab_size": vocab_size, "mask_id": mask_id, "length": length}
    return _SHAPES[network.kind](network, symbols)


def _dit(network: NetworkConfig, symbols: Mapping[str, Any]) -> DiTConfig:
    shape = asdict(network)
    del shape["kind"]
    return DiTConfig(**symbols, **shape)


def _esm2(network: NetworkConfig, symbols: Mapping[str, Any]) -> Esm2Config:
    expected = (len(ALPHABET), Esm2Config.mask_id)
    if (given := (symbols["vocab_size"], symbols["mask_id"])) != expected:
        raise UsageError(
            f"network.kind esm2 reads proteins, of {expected[0]} symbols with [MASK] at {expected[1]}; got {given[0]} "
            f"and {given[1]}: set network.kind to dit, or choose a corpus of proteins"
        )
    names = ("hidden_size", "num_blocks", "num_heads", "dropout", "conv_radius")
    shape = {name: getattr(network, name) for name in names}
    return Esm2Config(length=symbols["length"], has_token_dropout=False, **shape)


_SHAPES: Mapping[str, Callable[[NetworkConfig, Mapping[str, Any]], DiTConfig | Esm2Config]] = {
    "dit": _dit,
    "esm2": _esm2,
}
"""Shapes by ``NetworkConfig.kind``."""


def make_denoiser(settings: Any, source: Source, process: Process) -> DenoiserNetwork:
    """A new denoiser for a ``PretrainConfig``; weights are drawn from the global generator."""
    vocab_size, length = process.num_symbols(source.vocab_size), settings.data.length
    shape = denoiser_shape(settings.network, vocab_size=vocab_size, mask_id=process.mask_id, length=length)
    network: DenoiserNetwork = network_of(shape)
    return network


def make_autoregressive(settings: Any, source: Source) -> AutoregressiveLM:
    """A new GPT-2 with the width, depth and heads of a ``PretrainConfig``; weights from the global generator."""
    shape = {name: getattr(settings.network, name) for name in ("hidden_size", "num_blocks", "num_heads", "dropout")}
    length = settings.data.length
    return AutoregressiveLM(
        AutoregressiveConfig(vocab_size=source.vocab_size, mask_id=source.mask_id, length=length, **shape)
    )
