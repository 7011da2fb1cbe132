"""Conventions of code bases of diffusion transformers for their checkpoints, by layout of ``didi convert``."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from didi.data.blocks import BlockLayout
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.schedule import LogLinear, Schedule, schedule_from_name
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError


@dataclass(frozen=True)
class Layout:
    """The conventions of a code base for its checkpoints.

    Attributes:
        role: role of the network in a bundle.
        settings: function that reads settings from ``config.json``.
        block_layout: layout of the rows that the public checkpoints were trained on.
    """

    role: Literal["teacher", "student"]
    settings: Callable[[Mapping[str, Any]], "LayoutSettings"]
    block_layout: BlockLayout = "bos-eos"


@dataclass(frozen=True)
class LayoutSettings:
    """Settings that the tensors do not determine."""

    num_heads: Any = None
    length: Any = None
    is_time_conditioned: bool = False
    process: str = Absorbing.name
    schedule: Schedule = field(default_factory=LogLinear)


def _mdlm(config: Mapping[str, Any]) -> LayoutSettings:
    return LayoutSettings(
        config.get("n_heads"), config.get("model_length"), bool(config.get("time_conditioning", False))
    )


def _duo(config: Mapping[str, Any]) -> LayoutSettings:
    if config.get("causal"):
        raise UsageError("a Duo checkpoint is converted if its attention is bidirectional; config.json says causal")
    return LayoutSettings(
        config.get("n_heads"),
        config.get("model_length"),
        is_time_conditioned=True,
        process=Uniform.name,
        schedule=schedule_from_name("log-linear-eps"),  # as in the public code
    )


def _sedd(config: Mapping[str, Any]) -> LayoutSettings:
    """Settings of a SEDD checkpoint; absorbing scores that are not scaled by sigma are read as logits of a denoiser.

    At a mask the score is a constant times the distribution of the token (Ou et al. 2025); the constant is dropped.
    """
    model, graph, noise = (config.get(name) or {} for name in ("model", "graph", "noise"))
    graphs = {"absorb": "sedd-absorb" if model.get("scale_by_sigma", True) else "absorbing", "uniform": "sedd-uniform"}
    if (kind := graph.get("type", "absorb")) not in graphs:
        raise UsageError(f"a SEDD checkpoint's graph is one of {', '.join(graphs)}; config.json says {kind!r}")
    return LayoutSettings(
        model.get("n_heads"),
        model.get("length"),
        is_time_conditioned=True,
        process=graphs[kind],
        schedule=_sedd_schedule(noise),
    )


def _sedd_schedule(noise: Mapping[str, Any]) -> Schedule:
    """The schedule of a SEDD checkpoint; its log-linear noise ends at 1e-3."""
    name, ends = noise.get("type", "loglinear"), (noise.get("sigma_min", 1e-4), noise.get("sigma_max", 20))
    if name == "loglinear":
        return schedule_from_name("log-linear-eps")
    if name != "geometric":
        raise UsageError(f"a SEDD checkpoint's noise is one of loglinear, geometric; config.json says {name!r}")
    geometric = {(1e-5, 20): "geometric", (1e-4, 20): "geometric-1e-4"}
    if ends not in geometric:
        raise UsageError(
            f"geometric noise runs from 1e-5 or 1e-4 to 20 here; config.json says from {ends[0]} to {ends[1]}"
        )
    return schedule_from_name(geometric[ends])


LAYOUTS = {
    "mdlm": Layout("teacher", _mdlm),
    "duo": Layout("teacher", _duo),
    "sdtt": Layout("student", _mdlm),
    "sedd": Layout("teacher", _sedd, block_layout="stream"),
    "didi": Layout("student", _mdlm),
}
