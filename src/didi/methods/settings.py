"""Settings that all training methods share: frozen records in which every field says where its value comes from.

"Table" and "App." refer to the DiDi-Instruct paper, "row" to ``docs/deviations.md``.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from didi.data.blocks import BlockLayout
from didi.errors import UsageError

RENAMED_RECIPES = {"markov-uniform": "markov-udlm"}
"""Names of recipes in earlier versions, and those of now."""

CUSTOM = "custom"
"""Name of settings that begin with no recipe."""


def finite(settings: Any, *unbounded: str) -> None:
    """Refuse fields of ``settings`` that are NaN or infinite; those in ``unbounded`` may be ``inf``, for no bound."""
    for name in (one.name for one in fields(settings)):
        value = getattr(settings, name)
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if not is_finite and not (name in unbounded and value == math.inf):
            more = " or inf" if name in unbounded else ""
            raise UsageError(f"{name.replace('_', '-')} is a finite number{more}; got {value}")


def positive(settings: object, *names: str) -> None:
    """Refuse fields of ``settings`` that are 0 or less, or NaN; None passes."""
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UsageError(f"{name.replace('_', '-')} is positive; got {value}")


def at_least(low: int, settings: object, *names: str) -> None:
    """Refuse fields of ``settings`` that are below ``low`` or NaN."""
    for name in names:
        if not getattr(settings, name) >= low:  # so written, nan is refused too
            raise UsageError(f"{name.replace('_', '-')} is {low} or more; got {getattr(settings, name)}")


def share(settings: object, *names: str) -> None:
    """Refuse fields of ``settings`` outside [0, 1)."""
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise UsageError(f"{name.replace('_', '-')} lies in [0, 1); got {getattr(settings, name)}")


@dataclass(frozen=True)
class DataConfig:
    """The token sequences of a run (App. E.2)."""

    corpus: str = "news"
    """``markov``, ``exact``, ``news`` or another pinned corpus, a .txt or .jsonl file, or a Hub data set."""
    length: int = 128
    """Tokens in a sequence L; 1024 in the paper (Table 3)."""
    vocab_size: int | None = None
    """Size of a byte-level BPE to train on the training split; None where a tokenizer is named."""
    tokenizer: str | None = None
    """``gpt2``, a tokenizer.json or a Hub name."""
    block_layout: BlockLayout | None = None
    """Rows of text: ``stream`` (tokens in sequence) or ``bos-eos`` (BOS, L - 2 tokens, EOS, as the public MDLM code).
    None is the teacher's in a distillation, and ``stream`` elsewhere."""

    def __post_init__(self) -> None:
        at_least(2, self, "length")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network (Tables 3-4); the vocabulary comes from the tokenizer."""

    kind: Literal["dit", "esm2"] = "dit"
    """``dit``, the diffusion transformer; or ``esm2`` for proteins, whose network has no time input and excludes the
    symbols that stand for no residue."""
    hidden_size: int = 768
    """Width; 768 or 1024 in Tables 3-4."""
    num_blocks: int = 12
    """Transformer blocks; 12 or 24 in Tables 3-4."""
    num_heads: int = 12
    """Attention heads; 12 or 16 in Tables 3-4."""
    cond_dim: int = 128
    """Width of the noise conditioning; 128 in the public MDLM checkpoints."""
    dropout: float = 0.0
    """Dropout in pre-training; 0.1 in the public MDLM code. Distillation never uses dropout (row 7)."""
    is_time_conditioned: bool = False
    """Whether the denoiser reads its noise level; off in MDLM."""
    conv_radius: int = 0
    """Neighbours mixed in by a convolution before each block; 0 in MDLM, 2 helps small networks (docs/lab-notes.md)."""

    def __post_init__(self) -> None:
        at_least(1, self, "hidden_size", "num_blocks", "num_heads", "cond_dim")
        if self.kind == "esm2" and self.is_time_conditioned:
            raise UsageError(
                "network.kind esm2 has no time input; got is_time_conditioned: turn it off, or set kind dit"
            )
        at_least(0, self, "conv_radius")
        finite(self)
        share(self, "dropout")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule (Table 5)."""

    method: Literal["adamw", "muon"] = "adamw"
    """AdamW for all; or Muon for the matrices of the blocks, AdamW for the rest."""
    muon_rate_scale: float = 2.5
    """Muon's rate as a multiple of ``learning_rate``."""
    learning_rate: float = 1e-4
    """Peak rate."""
    warmup_steps: int = 0
    """Steps of linear rise from 0."""
    decay: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls over the rest of the run."""
    final_fraction: float = 0.0
    """Rate at the end, as a share of the peak."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    clip_norm: float = 1.0
    """Greatest norm of the whole gradient; ``inf`` for no bound."""

    def __post_init__(self) -> None:
        finite(self, "clip_norm")
        at_least(
            0, self, "learning_rate", "muon_rate_scale", "warmup_steps", "final_fraction", "weight_decay", "clip_norm"
        )
        share(self, "beta1", "beta2")
        if self.final_fraction > 1:
            raise UsageError(f"final-fraction lies in [0, 1]; got {self.final_fraction}")
        if self.final_fraction and self.decay == "constant":
            raise UsageError(
                f"final_fraction is 0 with decay constant, which has no end; got {self.final_fraction}: set it to 0, "
                "or decay to linear or cosine"
            )


@dataclass(frozen=True)
class LoopConfig:
    """Length and rhythm of a run."""

    steps: int = 10_000
    """Updates of the network that is trained (the student, in distillation)."""
    batch_size: int = 64
    """Sequences in one forward pass."""
    accumulation: int = 1
    """Forward passes per update; the batch of an update is ``batch_size * accumulation``."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl; values are means over the steps between."""
    validate_every: int = 500
    """Steps between validations (and one at the end)."""
    validation_sequences: int = 256
    """Sequences in a validation."""
    checkpoint_every: int = 200
    """Steps between checkpoints (and one at the end)."""
    keep_checkpoints: int = 2
    """Newest checkpoints that are kept."""
    max_skipped_steps: int = 0
    """Steps between two log lines whose loss or gradient may be infinite or not a number: they change nothing; one
    more ends the run."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Autocast of the networks; ``auto`` is bf16 on an accelerator that has it, float32 on a CPU."""
    fsdp: bool = False
    """Under torchrun, shard weights, gradients and moments over the processes (FSDP2) instead of copying them (DDP)."""
    activation_checkpointing: bool = False
    """Keep only the input of each trained block, and run the block again in the backward pass: less memory."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile); pays on a GPU in runs of more than some minutes."""
    loggers: tuple[str, ...] = ()
    """Where metrics go beside metrics.jsonl: tensorboard, wandb, or both."""
    ema_decay: float = 0.9999
    """Decay of the averaged weights that the bundle gets (row 17)."""
    ema_ramp: bool = True
    """Whether the decay is ramped up as (1 + n) / (10 + n), so that a short run is not an average of its start."""

    def __post_init__(self) -> None:
        at_least(0, self, "steps")  # methods say whether a run may have none, see ``RunConfig.check_steps``
        at_least(1, self, "batch_size", "accumulation", "keep_checkpoints", "validation_sequences")
        at_least(1, self, "log_every", "validate_every", "checkpoint_every")
        at_least(0, self, "max_skipped_steps")
        finite(self)
        if unknown := [name for name in self.loggers if name not in ("tensorboard", "wandb")]:
            raise UsageError(f"loop.loggers are some of tensorboard, wandb; got {', '.join(unknown)}")
        share(self, "ema_decay")


def check_sharding(loop: LoopConfig, *optimizers: OptimizerConfig) -> None:
    """Refuse Muon with sharded weights."""
    if loop.fsdp and any(optimizer.method == "muon" for optimizer in optimizers):
        raise UsageError("loop.fsdp goes with AdamW: Muon needs whole matrices; set the optimizer's method to adamw")


@dataclass(frozen=True)
class RunConfig:
    """What every training run has; the settings of a method inherit from it."""

    recipe: str = CUSTOM
    """Name of the recipe these settings started from."""
    seed: int = 0
    """Seed of new weights, of the order of the data and of every draw."""
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        finite(self)
        if not -(2**63) <= self.seed < 2**64:  # what a generator of torch takes
            raise UsageError(f"seed lies in [-2^63, 2^64); got {self.seed}")
        self.check_steps()

    def check_steps(self) -> None:
        """Refuse a run without updates.

        Raises:
            UsageError: ``loop.steps`` is 0.
        """
        at_least(1, self.loop, "steps")

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, phases without updates of the main network included."""
        return self.loop.steps

    @classmethod
    def current(cls, settings: Mapping[str, Any], base: "RunConfig | None" = None) -> dict[str, Any]:
        """Settings as an earlier version wrote them, under the names of now.

        Args:
            settings: the content of a ``config.yaml``, or a part of one.
            base: settings that the missing ones are taken from.
        """
        del base
        found = dict(settings)
        if isinstance(name := found.get("recipe"), str):
            found["recipe"] = RENAMED_RECIPES.get(name, name)
        data, names = found.get("data"), DataConfig.__dataclass_fields__
        if isinstance(data, Mapping) and len(data.keys() & names.keys()) >= len(names) - 1:  # the record of a run
            found["data"] = {**data, "block_layout": data.get("block_layout")}
        return found

    def for_dry_run(self) -> "RunConfig":
        """These settings with the same steps, and as little as possible of what a method prepares before the first."""
        return self

    def limited(self, max_steps: int) -> "RunConfig":
        """These settings cut to ``max_steps`` updates; a method that has further phases shortens them too."""
        return replace(self, loop=replace(self.loop, steps=max_steps))


@dataclass(frozen=True)
class DistillationConfig(RunConfig):
    """What every distillation has beside that."""

    teacher: str = ""
    """The teacher: a bundled name, a bundle folder or a Hub repository."""

    @property
    def starts_at_random(self) -> bool:
        """Whether students have a single move, from a random initial state (``models.initial_state``)."""
        return False

    @property
    def has_latent_codes(self) -> bool:
        """Whether students read latent codes (``models.latent``)."""
        return False
