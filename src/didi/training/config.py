"""Settings of the training runs: frozen records in which every field says where its value comes from.

"Table" and "App." refer to the DiDi-Instruct paper, "row" to ``docs/deviations.md``.
"""

from dataclasses import dataclass, field
from typing import Literal

from didi.diffusion.categorical import Divergence
from didi.diffusion.schedule import WeightName
from didi.errors import UsageError
from didi.objectives.didi import Grouping, RewardReduction, ScoreReduction


def _at_least(low: int, settings: object, *names: str) -> None:
    for name in names:
        if not getattr(settings, name) >= low:  # so written, nan is refused too
            raise UsageError(f"{name.replace('_', '-')} is {low} or more; got {getattr(settings, name)}")


def _share(settings: object, *names: str) -> None:
    for name in names:
        if not 0 <= getattr(settings, name) < 1:
            raise UsageError(f"{name.replace('_', '-')} lies in [0, 1); got {getattr(settings, name)}")


@dataclass(frozen=True)
class DataConfig:
    """The token sequences of a run (App. E.2)."""

    corpus: str = "news"
    """``markov``, ``news`` or another pinned corpus, a .txt or .jsonl file, or a Hub data set."""
    length: int = 128
    """Tokens in a sequence L; 1024 in the paper (Table 3)."""
    vocab_size: int | None = None
    """Size of a byte-level BPE to train on the training split; None where a tokenizer is named."""
    tokenizer: str | None = None
    """``gpt2``, a tokenizer.json or a Hub name."""

    def __post_init__(self) -> None:
        _at_least(2, self, "length")


@dataclass(frozen=True)
class NetworkConfig:
    """Shape of the diffusion transformer (Tables 3-4); the vocabulary comes from the tokenizer."""

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
    """Whether the denoiser is told its noise level; off in MDLM."""
    conv_radius: int = 0
    """Neighbours mixed in by a convolution before each block; 0 in MDLM, 2 helps small networks (docs/lab-notes.md)."""

    def __post_init__(self) -> None:
        _at_least(1, self, "hidden_size", "num_blocks", "num_heads", "cond_dim")
        _at_least(0, self, "conv_radius")
        _share(self, "dropout")


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
    """Greatest norm of the whole gradient."""

    def __post_init__(self) -> None:
        _at_least(
            0, self, "learning_rate", "muon_rate_scale", "warmup_steps", "final_fraction", "weight_decay", "clip_norm"
        )
        _share(self, "beta1", "beta2")


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
    ema_decay: float = 0.9999
    """Decay of the averaged weights that the bundle gets (row 17)."""
    ema_ramp: bool = True
    """Whether the decay is ramped up as (1 + n) / (10 + n), so that a short run is not an average of its start."""

    def __post_init__(self) -> None:
        _at_least(1, self, "steps", "batch_size", "accumulation", "keep_checkpoints", "validation_sequences")
        _at_least(1, self, "log_every", "validate_every", "checkpoint_every")
        _at_least(0, self, "max_skipped_steps")
        _share(self, "ema_decay")


def _check_sharding(loop: LoopConfig, *optimizers: OptimizerConfig) -> None:
    if loop.fsdp and any(optimizer.method == "muon" for optimizer in optimizers):
        raise UsageError("loop.fsdp goes with AdamW: Muon needs whole matrices; set the optimizer's method to adamw")


@dataclass(frozen=True)
class PretrainConfig:
    """Pre-training of a masked-diffusion teacher by its NELBO, Eq. 3, or of its autoregressive twin."""

    recipe: str = "custom"
    """Name of the recipe these settings started from."""
    seed: int = 0
    """Seed of the weights, the order of the data and the noise."""
    model: Literal["masked-diffusion", "autoregressive"] = "masked-diffusion"
    """What is trained: a teacher, or GPT-2 of the same shape on the same tokens (time settings do not touch it)."""
    process: str = "absorbing"
    """Diffusion process, a name in ``didi.diffusion.PROCESSES``; absorbing (masked diffusion) in the paper."""
    schedule: Literal["log-linear", "cosine", "geometric"] = "log-linear"
    """Noise schedule; log-linear in MDLM and in the paper."""
    t_min: float = 1e-3
    """Least time drawn; 1e-3 in MDLM."""
    weight: WeightName = "nelbo"
    """Weight of the loss over time: the NELBO's, or 1 (less noise; small networks learn faster)."""
    data: DataConfig = field(default_factory=DataConfig)
    network: NetworkConfig = field(default_factory=NetworkConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)

    def __post_init__(self) -> None:
        _check_sharding(self.loop, self.optimizer)


@dataclass(frozen=True)
class DiscriminatorSettings:
    """The discriminator and its training (Table 3, row 8)."""

    output: Literal["token", "sequence"] = "token"
    """One logit for each token (text), or one for a sequence (proteins, App. F.6)."""
    trainable_blocks: int | None = None
    """Last blocks that are trained beside the head; the rest stays as in the teacher. None trains all; 4 released."""
    is_time_conditioned: bool = True
    """Whether it is told the noise level (row 9)."""
    label_smoothing: float = 0.1
    """Smoothing epsilon of the labels 1 - eps/2 and eps/2 (row 8)."""
    unsmooth: bool = False
    """Undo the smoothing when a logit is read as a log-ratio (row 8)."""
    warmup_steps: int = 300
    """Steps before the first student update in which only the discriminator learns."""
    warmup_moves: int = 2
    """Moves of the student in them: even where ``objective.moves`` is more, it learns faster from the easier two."""
    steps_per_student_step: int = 1
    """Discriminator updates for each student update, each on fresh corruptions and fresh real rows."""
    completions: int | None = None
    """Completions of each state that it learns from, None for all; those of one state are alike, so 1 loses little."""
    real_source: str = "corpus"
    """Real side: ``corpus``; ``teacher-pool``, teacher samples drawn once and reused; or ``teacher-steps=K``, drawn
    anew at every step with K passes (row 1)."""
    pool_size: int = 4096
    """Sequences in a teacher pool."""
    pool_nfe: int = 128
    """Passes per sequence of a teacher pool."""
    guidance_steps: int = 0
    """Steps after the last student update in which only the discriminator learns, from states of the finished
    student's own sampler: those that guided sampling asks it about."""
    guidance_nfe: int = 8
    """Moves of that sampler."""

    def __post_init__(self) -> None:
        _at_least(0, self, "warmup_steps", "guidance_steps")
        _at_least(2, self, "warmup_moves")
        _at_least(1, self, "steps_per_student_step", "pool_size", "pool_nfe", "guidance_nfe")
        _share(self, "label_smoothing")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The DiDi-Instruct objective; the switches of Tables 1-2 and of docs/deviations.md."""

    score_decomposition: bool = True
    """Two moves 1 -> tau -> 0 whose scores are split, Eq. 9; off is the one-step generator."""
    moves: int = 2
    """Moves of the student in training. More than the paper's 2 (ours): states come from its own sampler of so many
    moves, and a random one of them is scored, as far as it has gone at a time within it."""
    coupled_time: bool = True
    """Corrupt the samples at the time tau of their intermediate state (App. F.3)."""
    weight: WeightName = "constant"
    """omega(t): 1, or the NELBO's -alpha'/(1 - alpha) (row 12)."""
    weight_low: float = 0.1
    """Least omega."""
    weight_high: float = 10.0
    """Greatest omega."""
    time_a: float = 1.0
    """First parameter of the Beta density pi of times (Table 5)."""
    time_b: float = 1.0
    """Second parameter; Beta(2, 5) favours few masks, Beta(5, 2) many."""
    importance_weighting: bool = False
    """Divide by pi(t) as in Eq. 5; off, the effective weight is omega * pi (row 13)."""
    importance_clip: float = 10.0
    """Greatest 1 / pi(t)."""
    reward_reduction: RewardReduction = "masked-mean"
    """How a sequence's logits become its reward, Eq. 6."""
    reward_clamp: float | None = None
    """Bound on a reward in nats; 8 in the released code (row 10)."""
    completions: int = 1
    """Completions x of each intermediate state (reduction B)."""
    corruptions: int = 1
    """Corruptions z_t of each completion whose rewards are used (reduction C)."""
    advantage: Grouping = "batch"
    """Whose rewards form the baseline, Eq. 7 (row 11)."""
    group_size: int = 4
    """Group size of ``rows`` and ``shared-time``."""
    normalise_advantage: bool = True
    """Divide by the group's standard deviation, Eq. 7."""
    revealed_only: bool = False
    """Score only what the corruption reveals (reduction A)."""
    pg_reduction: ScoreReduction = "sum"
    """Sum of log-probabilities over tokens, or their mean (row 16)."""
    divergence: Divergence = "forward"
    """Divergence of the regulariser."""
    divergence_weight: float = 0.05
    """Weight of the divergence from the teacher, at both moves (App. F.3)."""
    entropy_weight: float = 0.0005
    """Weight of the entropy bonus, at both moves (App. F.3)."""

    def __post_init__(self) -> None:
        _at_least(1, self, "completions", "corruptions", "group_size")
        _at_least(2, self, "moves")
        _at_least(0, self, "divergence_weight", "entropy_weight", "weight_low", "importance_clip")


@dataclass(frozen=True)
class DistillConfig:
    """Distillation of a teacher into a few-step student by DiDi-Instruct, Algorithm 1."""

    recipe: str = "custom"
    """Name of the recipe these settings started from."""
    teacher: str = ""
    """The teacher: a bundled name, a bundle folder or a Hub repository."""
    seed: int = 0
    """Seed of the discriminator's head, the order of the data and every draw."""
    data: DataConfig = field(default_factory=DataConfig)
    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    student_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    loop: LoopConfig = field(default_factory=LoopConfig)
    """``batch_size`` counts intermediate states."""
    lora_rank: int | None = None
    """Train student and discriminator as low-rank adapters of this rank on the teacher's weights, which then exist
    once (ours); they learn less in the same steps (docs/scale.md). None trains weights of their own."""

    def __post_init__(self) -> None:
        objective, discriminator, loop = self.objective, self.discriminator, self.loop
        _check_sharding(loop, self.student_optimizer, self.discriminator_optimizer)
        if self.lora_rank is not None:
            _at_least(1, self, "lora_rank")
            if loop.fsdp or "muon" in (self.student_optimizer.method, self.discriminator_optimizer.method):
                raise UsageError("lora_rank goes with AdamW and without loop.fsdp; leave it out or change those")
        if loop.accumulation > 1 and discriminator.steps_per_student_step > 1:
            raise UsageError(
                "discriminator.steps_per_student_step is 1 where loop.accumulation is more than 1: several "
                "discriminator updates cannot share accumulated batches; got "
                f"{discriminator.steps_per_student_step} and {loop.accumulation}"
            )
        if not 1 <= (discriminator.completions or 1) <= objective.completions:
            raise UsageError(
                f"discriminator.completions lies in [1, {objective.completions}], the objective's; got "
                f"{discriminator.completions}"
            )
        is_plain = objective.score_decomposition and objective.coupled_time
        is_plain = is_plain and objective.time_a == objective.time_b == 1
        is_plain = is_plain and objective.advantage != "shared-time"  # each state has a time of its own
        moves = max(objective.moves, discriminator.warmup_moves)
        if moves > 2 and not (is_plain and discriminator.steps_per_student_step == 1):
            raise UsageError(
                "objective.moves and discriminator.warmup_moves above 2 go with score_decomposition, coupled_time, "
                "Beta(1, 1) times, an advantage other than shared-time and one update of the discriminator a step; "
                f"got {moves}: set it to 2 or those to their defaults"
            )
        if objective.advantage in ("rows", "shared-time") and loop.batch_size % objective.group_size:
            raise UsageError(
                f"loop.batch_size is a multiple of objective.group_size for {objective.advantage} groups; got "
                f"{loop.batch_size} and {objective.group_size}"
            )
