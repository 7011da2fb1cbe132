"""Settings that all training methods share: frozen dataclasses whose field docstrings name the source of a value.

"Table" and "App." refer to the DiDi-Instruct paper, "row" to ``docs/deviations.md``. The constructors of all settings
raise ``UsageError`` for values that are out of range or contradict each other.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Literal

from didi.data.blocks import BlockLayout
from didi.errors import UsageError

RENAMED_RECIPES = {"markov-uniform": "markov-udlm"}
"""Present names of recipes, by their names in earlier versions."""

CUSTOM = "custom"
"""``RunConfig.recipe`` of settings that do not start from a recipe."""


def check_finite(settings: Any, *unbounded: str) -> None:
    """Refuse float fields of ``settings`` that are NaN or infinite; fields in ``unbounded`` may be ``inf``.

    Raises:
        UsageError: a field is refused.
    """
    for name in (entry.name for entry in fields(settings)):
        value = getattr(settings, name)
        is_finite = not isinstance(value, float) or math.isfinite(value)
        if not is_finite and not (name in unbounded and value == math.inf):
            more = " or inf" if name in unbounded else ""
            raise UsageError(f"{name} is a finite number{more}; got {value}")


def check_positive(settings: object, *names: str) -> None:
    """Refuse fields of ``settings`` that are 0 or less, or NaN; None is accepted.

    Raises:
        UsageError: a field is refused.
    """
    for name in names:
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise UsageError(f"{name} is positive; got {value}")


def check_at_least(low: int, settings: object, *names: str) -> None:
    """Refuse fields of ``settings`` that are below ``low`` or NaN.

    Raises:
        UsageError: a field is refused.
    """
    for name in names:
        if not getattr(settings, name) >= low:  # "not >=" instead of "<" refuses NaN too
            raise UsageError(f"{name} is {low} or more; got {getattr(settings, name)}")


def check_fraction(settings: object, *names: str) -> None:
    """Refuse fields of ``settings`` outside [0, 1).

    Raises:
        UsageError: a field is refused.
    """
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise UsageError(f"{name} lies in [0, 1); got {getattr(settings, name)}")


@dataclass(frozen=True)
class DataConfig:
    """The token sequences of a run (App. E.2)."""

    corpus: str = "news"
    """``markov``, ``exact``, ``news`` or another pinned corpus, a .txt or .jsonl file, or a Hub data set."""
    length: int = 128
    """Sequence length L in tokens; 1024 in the paper (Table 3)."""
    vocab_size: int | None = None
    """Vocabulary size of a byte-level BPE that is trained on the training split; None if ``tokenizer`` is set."""
    tokenizer: str | None = None
    """``gpt2``, a tokenizer.json or a Hub name."""
    block_layout: BlockLayout | None = None
    """Rows of text: ``stream`` (tokens in sequence) or ``bos-eos`` (BOS, L - 2 tokens, EOS, as the public MDLM code).
    None: that of the teacher in a distillation, otherwise ``stream``."""

    def __post_init__(self) -> None:
        check_at_least(2, self, "length")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the network (Tables 3-4); the vocabulary comes from the tokenizer."""

    kind: Literal["dit", "esm2", "bert"] = "dit"
    """``dit``, the diffusion transformer; or, for proteins, ``esm2`` (rotary positions) or ``bert`` (learned positions,
    as in AntiBERTy), which have no time input and exclude the symbols that stand for no residue."""
    hidden_size: int = 768
    """Width; 768 or 1024 in Tables 3-4."""
    num_blocks: int = 12
    """Transformer blocks; 12 or 24 in Tables 3-4."""
    num_heads: int = 12
    """Attention heads; 12 or 16 in Tables 3-4."""
    cond_dim: int = 128
    """Width of the embedding of the noise level; 128 in the public MDLM checkpoints."""
    dropout: float = 0.0
    """Dropout in pre-training; 0.1 in the public MDLM code. Distillation never uses dropout (row 7 of
    docs/deviations.md)."""
    is_time_conditioned: bool = False
    """Whether the denoiser reads its noise level; off in MDLM."""
    conv_radius: int = 0
    """Radius of a convolution before each block; 0, none, in MDLM; 2 helps small networks (docs/lab-notes.md)."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "hidden_size", "num_blocks", "num_heads", "cond_dim")
        if self.kind != "dit" and self.is_time_conditioned:
            raise UsageError(
                f"network.kind {self.kind} has no time input; got is_time_conditioned: turn it off, or set kind dit"
            )
        if self.kind == "bert" and self.conv_radius:
            raise UsageError(f"network.kind bert has no convolutions; got conv_radius {self.conv_radius}: set it to 0")
        check_at_least(0, self, "conv_radius")
        check_finite(self)
        check_fraction(self, "dropout")


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its schedule (Table 5)."""

    method: Literal["adamw", "muon"] = "adamw"
    """AdamW for all weights; or Muon for the matrices of the blocks and AdamW for the rest."""
    muon_rate_scale: float = 2.5
    """Learning rate of Muon as a multiple of ``learning_rate``."""
    learning_rate: float = 1e-4
    """Peak learning rate."""
    warmup_steps: int = 0
    """Steps in which the rate rises linearly from 0."""
    decay: Literal["constant", "linear", "cosine"] = "linear"
    """How the rate falls over the rest of the run."""
    final_fraction: float = 0.0
    """Final rate as a fraction of the peak rate."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.999
    """Decay of the second moment."""
    weight_decay: float = 0.01
    """Decoupled weight decay, on matrices only."""
    clip_norm: float = 1.0
    """Gradients are clipped to this norm; ``inf`` for no clipping."""

    def __post_init__(self) -> None:
        check_finite(self, "clip_norm")
        check_at_least(
            0, self, "learning_rate", "muon_rate_scale", "warmup_steps", "final_fraction", "weight_decay", "clip_norm"
        )
        check_fraction(self, "beta1", "beta2")
        if self.final_fraction > 1:
            raise UsageError(f"final_fraction lies in [0, 1]; got {self.final_fraction}")
        if self.final_fraction and self.decay == "constant":
            raise UsageError(
                f"final_fraction is 0 with decay constant; got {self.final_fraction}: set it to 0, "
                "or decay to linear or cosine"
            )


@dataclass(frozen=True)
class LoopConfig:
    """Length of a run, its batches, logging, checkpoints and execution."""

    steps: int = 10_000
    """Updates of the trained network (of the student, in a distillation)."""
    batch_size: int = 64
    """Sequences of a micro-batch, divided among the processes."""
    accumulation: int = 1
    """Micro-batches of an update, whose batch has ``batch_size * accumulation`` sequences."""
    log_every: int = 20
    """Steps between lines of metrics.jsonl, whose values are means over these steps."""
    validate_every: int = 500
    """Steps between validations (and one at the end)."""
    validation_sequences: int = 256
    """Number of held-out sequences in a validation."""
    checkpoint_every: int = 200
    """Steps between checkpoints (and one at the end)."""
    keep_checkpoints: int = 2
    """Number of newest checkpoints that are kept."""
    max_skipped_steps: int = 0
    """Number of steps with an infinite or NaN loss or gradient that are tolerated between two log lines. Such a step
    changes no weights; one more of them ends the run."""
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """Autocast of the networks; ``auto`` is bf16 on an accelerator that has it, float32 on a CPU."""
    fsdp: bool = False
    """Under torchrun, shard weights, gradients and moments over the processes (FSDP2) instead of copying them (DDP)."""
    activation_checkpointing: bool = False
    """Store only the input of each trained block and recompute the block in the backward pass, which saves memory."""
    compile: bool = False
    """Compile the transformer blocks (torch.compile); saves time in runs of more than a few minutes on a GPU."""
    loggers: tuple[str, ...] = ()
    """Loggers of metrics beside metrics.jsonl: tensorboard, wandb, or both."""
    ema_decay: float = 0.9999
    """Decay of the moving average of the weights, which the bundle holds (row 17 of docs/deviations.md)."""
    ema_ramp: bool = True
    """Whether the decay of update n is at most (1 + n) / (10 + n), so that initial weights do not dominate in short
    runs."""

    def __post_init__(self) -> None:
        check_at_least(0, self, "steps")  # whether 0 is allowed depends on the method: ``RunConfig.check_steps``
        check_at_least(1, self, "batch_size", "accumulation", "keep_checkpoints", "validation_sequences")
        check_at_least(1, self, "log_every", "validate_every", "checkpoint_every")
        check_at_least(0, self, "max_skipped_steps")
        check_finite(self)
        if unknown := [name for name in self.loggers if name not in ("tensorboard", "wandb")]:
            raise UsageError(f"loop.loggers are some of tensorboard, wandb; got {', '.join(unknown)}")
        check_fraction(self, "ema_decay")


def check_sharding(loop: LoopConfig, *optimizers: OptimizerConfig) -> None:
    """Refuse Muon with sharded weights.

    Raises:
        UsageError: an optimizer is Muon and ``loop.fsdp`` is on.
    """
    if loop.fsdp and any(optimizer.method == "muon" for optimizer in optimizers):
        raise UsageError("loop.fsdp needs AdamW: Muon needs whole matrices; set the optimizer's method to adamw")


@dataclass(frozen=True)
class RunConfig:
    """Settings of every training run; the settings classes of the methods inherit from it."""

    recipe: str = CUSTOM
    """Name of the recipe these settings started from."""
    seed: int = 0
    """Seed of initial weights, of the order of the data and of all random draws."""
    data: DataConfig = field(default_factory=DataConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        check_finite(self)
        if not -(2**63) <= self.seed < 2**64:  # the range of ``torch.Generator.manual_seed``
            raise UsageError(f"seed lies in [-2^63, 2^64); got {self.seed}")
        self.check_steps()

    def check_steps(self) -> None:
        """Refuse a run without updates.

        Raises:
            UsageError: ``loop.steps`` is 0.
        """
        check_at_least(1, self.loop, "steps")

    @property
    def num_steps(self) -> int:
        """Steps of the whole run, including phases without updates of the main network."""
        return self.loop.steps

    @classmethod
    def upgraded(cls, settings: Mapping[str, Any], base: "RunConfig | None" = None) -> dict[str, Any]:
        """Settings that an earlier version wrote, converted to the names and values of this version.

        Args:
            settings: the content of a ``config.yaml``, or a part of it.
            base: source of the missing settings.
        """
        del base
        upgraded = dict(settings)
        if isinstance(name := upgraded.get("recipe"), str):
            upgraded["recipe"] = RENAMED_RECIPES.get(name, name)
        data, names = upgraded.get("data"), DataConfig.__dataclass_fields__
        # A complete record, which has all fields but perhaps this newer one; partial settings stay partial.
        if isinstance(data, Mapping) and len(data.keys() & names.keys()) >= len(names) - 1:
            upgraded["data"] = {**data, "block_layout": data.get("block_layout")}
        return upgraded

    def for_dry_run(self) -> "RunConfig":
        """The same steps with as little work as possible before the first step."""
        return self

    def limited(self, max_steps: int) -> "RunConfig":
        """The settings with ``max_steps`` updates; methods with further phases shorten these too."""
        return replace(self, loop=replace(self.loop, steps=max_steps))


@dataclass(frozen=True)
class DistillationConfig(RunConfig):
    """Settings of every distillation."""

    teacher: str = ""
    """The teacher: the name of a bundled model, a bundle folder or a Hub repository."""

    @property
    def starts_at_random(self) -> bool:
        """Whether students are one-step generators with a random initial state (``models.initial_state``)."""
        return False

    @property
    def has_latent_codes(self) -> bool:
        """Whether students read latent codes (``models.latent``)."""
        return False
