"""Networks for pre-training: with new weights, or of a bundle that is trained further."""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from didi.data.source import Source
from didi.diffusion import Process
from didi.errors import DidiError, UsageError
from didi.methods.settings import NetworkConfig
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bert import BertConfig
from didi.models.bundle import Bundle, load
from didi.models.digest import weights_digest
from didi.models.dit import DiTConfig
from didi.models.esm2 import Esm2Config
from didi.models.networks import DenoiserNetwork, kind_of, network_of
from didi.models.proteins import ALPHABET, MASK_ID, ProteinConfig


def denoiser_shape(
    network: NetworkConfig, *, vocab_size: int, mask_id: int | None, length: int
) -> DiTConfig | ProteinConfig:
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
    return Esm2Config(**_protein(network, symbols), has_token_dropout=False, conv_radius=network.conv_radius)


def _bert(network: NetworkConfig, symbols: Mapping[str, Any]) -> BertConfig:
    return BertConfig(**_protein(network, symbols))


def _protein(network: NetworkConfig, symbols: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of ``ProteinConfig``."""
    expected = (len(ALPHABET), MASK_ID)
    if (given := (symbols["vocab_size"], symbols["mask_id"])) != expected:
        raise UsageError(
            f"network.kind {network.kind} reads proteins, of {expected[0]} symbols with [MASK] at {expected[1]}; got "
            f"{given[0]} and {given[1]}: set network.kind to dit, or choose a corpus of proteins"
        )
    names = ("hidden_size", "num_blocks", "num_heads", "dropout")
    return {name: getattr(network, name) for name in names} | {"length": symbols["length"]}


_SHAPES: Mapping[str, Callable[[NetworkConfig, Mapping[str, Any]], DiTConfig | ProteinConfig]] = {
    "dit": _dit,
    "esm2": _esm2,
    "bert": _bert,
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


@dataclass(frozen=True)
class Start:
    """What a run that trains a network further begins with.

    Attributes:
        network: the network, with the dropout of the run.
        digest: ``weights_digest`` of the network.
        provenance: that of its bundle.
    """

    network: nn.Module
    digest: str
    provenance: dict[str, Any]


def start_of(settings: Any, source: Source, process: Process) -> Start:
    """The network of the bundle ``settings.start`` for a ``PretrainConfig``, with the dropout of ``settings.network``.

    Raises:
        UsageError: the bundle is missing or has no network of that role, or its process, tokens or context do not fit.
        DidiError: see ``bundle.load``.
    """
    name = settings.start
    bundle, started = _started(settings)
    if bundle.process.name != process.name:
        raise UsageError(
            f"start has the process of the run, {process.name}; that of {name} is {bundle.process.name}: set process"
        )
    if bundle.tokenizer is None or bundle.tokenizer.get_vocab() != source.tokenizer.get_vocab():
        raise UsageError(
            f"start has the tokens of the corpus {settings.data.corpus}; those of {name} are others or missing: set "
            f"data.tokenizer to that of {name}, or choose another corpus"
        )
    if started.length < settings.data.length:
        raise UsageError(
            f"data.length is at most the context of start, {started.length}; got {settings.data.length}: lower it"
        )
    network: nn.Module = network_of(replace(started.config, dropout=settings.network.dropout))
    network.load_state_dict(started.state_dict())
    return Start(network, weights_digest(network), bundle.provenance)


def network_config_of_start(settings: Any) -> NetworkConfig:
    """``settings.network`` with the kind and the sizes of the network in the bundle ``settings.start``.

    The dropout is that of ``settings``. Settings that the kind of the network does not have get their defaults.

    Raises:
        UsageError: the bundle is missing or has no network of that role.
        DidiError: see ``bundle.load``.
    """
    _, started = _started(settings)
    names = NetworkConfig.__dataclass_fields__.keys() & started.config.__dataclass_fields__.keys()
    sizes = {name: getattr(started.config, name) for name in names} | {"dropout": settings.network.dropout}
    kind: Any = settings.network.kind if settings.model == "autoregressive" else kind_of(started)
    return NetworkConfig(kind=kind, **sizes)


def _started(settings: Any) -> tuple[Bundle, Any]:
    """The bundle ``settings.start`` and the network in it that is trained further."""
    name, role = settings.start, "autoregressive" if settings.model == "autoregressive" else "teacher"
    try:
        bundle = load(name)
    except DidiError as error:
        raise type(error)(
            "start takes a bundle, which a resumed run needs too, for example that of `didi convert antiberty "
            f"antiberty --out bundles/antiberty`: {error}"
        ) from error
    network = bundle.networks().get(role)
    if network is None:
        raise UsageError(
            f"start names a bundle with the role {role}; {name} holds {', '.join(bundle.networks())}: name another"
        )
    return bundle, network
