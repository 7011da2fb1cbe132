"""Settings of DiDi-Instruct; "Table" and "App." refer to the paper, "row" to ``docs/deviations.md``."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from jaxtyping import Float
from torch import Tensor

from didi.diffusion.categorical import Divergence
from didi.diffusion.schedule import Schedule, TimeDensity, WeightName, time_weight
from didi.errors import UsageError
from didi.methods.settings import DistillationConfig, OptimizerConfig, RunConfig, at_least, check_sharding, share
from didi.objectives.didi import Grouping, RewardReduction, ScoreReduction

TrajectoryKind = Literal["one-step", "two-moves", "path", "whole-path"]
RewardTime = Literal["finished", "density", "both"]


@dataclass(frozen=True)
class DiscriminatorSettings:
    """The discriminator and its training (Table 3, row 8)."""

    output: Literal["token", "sequence"] = "token"
    """One logit for each token (text), or one for a sequence (proteins, App. F.6)."""
    trainable_blocks: int | None = None
    """Last blocks that are trained beside the head; the rest stays as in the teacher. None trains all; 4 released."""
    is_time_conditioned: bool = True
    """Whether it reads the noise level (row 9)."""
    label_smoothing: float = 0.1
    """Smoothing epsilon of the labels 1 - eps/2 and eps/2 (row 8)."""
    unsmooth: bool = False
    """Undo the smoothing when a logit is read as a log-ratio (row 8)."""
    warmup_steps: int = 300
    """Steps before the first student update in which only the discriminator learns."""
    warmup_moves: int = 2
    """Moves of the student in them. 2: two moves even where the objective's trajectory is a path, since it learns
    faster from these; more: a path of so many moves."""
    steps_per_student_step: int = 1
    """Discriminator updates for each student update, each on fresh corruptions and fresh real rows."""
    completions: int | None = None
    """Completions of each state that it learns from, None for all; those of one state are alike, so 1 loses little."""
    fresh_rollouts: bool = False
    """Whether the further updates of a step learn from other samples of the student, rolled out for them; otherwise
    from other corruptions of the step's samples."""
    real_source: str = "corpus"
    """Real side: ``corpus``; ``teacher-pool``, teacher samples drawn once and reused; or ``teacher-steps=K``, drawn
    anew at every step with K passes (row 1)."""
    pool_size: int = 4096
    """Sequences in a teacher pool."""
    pool_nfe: int = 128
    """Passes per sequence of a teacher pool."""
    guidance_steps: int = 0
    """Steps after the last student update in which only the discriminator learns, from states of the finished
    student's own sampler: those that guided sampling scores."""
    guidance_nfe: int = 8
    """Moves of that sampler."""

    def __post_init__(self) -> None:
        if self.fresh_rollouts and self.steps_per_student_step == 1:
            raise UsageError(
                "discriminator.fresh_rollouts is for discriminator.steps_per_student_step of 2 or more; got 1: raise "
                "it, or leave fresh_rollouts out"
            )
        at_least(0, self, "warmup_steps", "guidance_steps")
        at_least(2, self, "warmup_moves")
        at_least(1, self, "steps_per_student_step", "pool_size", "pool_nfe", "guidance_nfe")
        share(self, "label_smoothing")


@dataclass(frozen=True)
class ObjectiveConfig:
    """The DiDi-Instruct objective; the switches of Tables 1-2 and of docs/deviations.md."""

    trajectory: TrajectoryKind = "two-moves"
    """How the student generates in training. ``one-step``: all tokens from the all-mask state. ``two-moves``: 1 -> tau
    -> 0, with the score of both moves, Eq. 9 (the paper). ``path``: states come from the student's own sampler of
    ``moves`` moves, and a random one of them is scored by its state at a time within it (ours). ``whole-path``: all
    ``moves`` moves of that sampler are scored, by the finished sample (ours)."""
    moves: int | None = None
    """Moves of a ``path``, 3 or more, or of a ``whole-path``, 1 or more; None for the others."""
    reward_time: RewardTime = "finished"
    """Time t of the rewards of a ``whole-path``: 0, the finished sample itself; drawn from pi(t); or 0 in every other
    sample of the batch and drawn from pi(t) in the rest."""
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
        at_least(1, self, "completions", "corruptions", "group_size")
        least = {"path": 3, "whole-path": 1}.get(self.trajectory)
        if least is not None and (self.moves is None or self.moves < least):
            raise UsageError(
                f"objective.moves is the number of moves of trajectory {self.trajectory}, {least} or more; got "
                f"{self.moves}: set it, or set objective.trajectory to two-moves"
            )
        if least is None and self.moves is not None:
            raise UsageError(
                f"objective.moves is for trajectory path or whole-path; got {self.moves} with {self.trajectory}: set "
                "objective.trajectory to one of these, or leave objective.moves out"
            )
        self._check_whole_path()
        at_least(0, self, "divergence_weight", "entropy_weight", "weight_low", "importance_clip")

    def _check_whole_path(self) -> None:
        """Refuse settings that have no meaning on a whole path, and a time of rewards elsewhere."""
        if self.trajectory != "whole-path":
            if self.reward_time != "finished":
                raise UsageError(
                    f"objective.reward_time is for trajectory whole-path; got {self.reward_time} with "
                    f"{self.trajectory}: leave it out, or set objective.trajectory to whole-path"
                )
            return
        needed: dict[str, Any] = {"completions": 1, "revealed_only": False, "divergence_weight": 0, "entropy_weight": 0}
        if self.reward_time == "finished":
            needed["corruptions"] = 1
        if self.reward_time != "density":  # at t = 0 neither exists
            needed |= {"weight": "constant", "importance_weighting": False}
        wrong = [f"{name} {value}" for name, value in needed.items() if getattr(self, name) != value]
        if self.advantage not in ("batch", "rows", "leave-one-out"):
            wrong.append("advantage batch, rows or leave-one-out")
        if wrong:
            raise UsageError(
                f"objective.trajectory whole-path with reward_time {self.reward_time} goes with objective."
                f"{', objective.'.join(wrong)}: set these, or choose another trajectory"
            )

    def time_weights(self, t: Float[Tensor, " s"], schedule: Schedule) -> Float[Tensor, " s"]:
        r""":math:`\omega(t)`, or :math:`\omega(t)/\pi(t)` with importance weights; float32."""
        weight = time_weight(self.weight, schedule, t, low=self.weight_low, high=self.weight_high)
        if self.importance_weighting:
            density = TimeDensity(self.time_a, self.time_b).density(t)
            weight = weight * (1 / density).clamp(max=self.importance_clip)
        return weight.float()


@dataclass(frozen=True)
class DistillConfig(DistillationConfig):
    """Distillation of a teacher into a few-step student by DiDi-Instruct, Algorithm 1.

    ``loop.batch_size`` counts intermediate states, ``loop.steps`` updates of the student.
    """

    objective: ObjectiveConfig = field(default_factory=ObjectiveConfig)
    discriminator: DiscriminatorSettings = field(default_factory=DiscriminatorSettings)
    student_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    discriminator_optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    lora_rank: int | None = None
    """Train student and discriminator as low-rank adapters of this rank on the teacher's weights, which then exist
    once (ours); they learn less in the same steps (docs/scale.md). None trains weights of their own."""
    start: str = ""
    """Bundle whose student and discriminator the run starts from (ours); empty: both are made of the teacher."""

    def __post_init__(self) -> None:
        objective, discriminator, loop = self.objective, self.discriminator, self.loop
        check_sharding(loop, self.student_optimizer, self.discriminator_optimizer)
        if self.lora_rank is not None:
            at_least(1, self, "lora_rank")
            if self.start:
                raise UsageError(f"start goes without lora_rank; got {self.start} and {self.lora_rank}")
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
        is_plain = objective.trajectory != "one-step" and objective.coupled_time
        is_plain = is_plain and objective.time_a == objective.time_b == 1
        is_plain = is_plain and objective.advantage != "shared-time"  # each state has a time of its own
        has_path = "path" in (objective.trajectory, self.warmup_objective.trajectory)
        if has_path and not (is_plain and discriminator.steps_per_student_step == 1):
            raise UsageError(
                "objective.trajectory path and discriminator.warmup_moves above 2 go with coupled_time, Beta(1, 1) "
                "times, an advantage other than shared-time, one update of the discriminator a step, and no one-step "
                f"trajectory; got {objective.trajectory} and {discriminator.warmup_moves}: set them to two-moves and "
                "2, or the others to their defaults"
            )
        if objective.advantage in ("rows", "shared-time") and loop.batch_size % objective.group_size:
            raise UsageError(
                f"loop.batch_size is a multiple of objective.group_size for {objective.advantage} groups; got "
                f"{loop.batch_size} and {objective.group_size}"
            )

    @property
    def warmup_objective(self) -> ObjectiveConfig:
        """The objective with the trajectories of the discriminator's warm-up, ``discriminator.warmup_moves``.

        Whole paths are the same in both.
        """
        if self.objective.trajectory == "whole-path":
            return self.objective
        if (moves := self.discriminator.warmup_moves) > 2:
            return replace(self.objective, trajectory="path", moves=moves)
        is_path = self.objective.trajectory == "path"
        return replace(self.objective, trajectory="two-moves", moves=None) if is_path else self.objective

    @classmethod
    def current(cls, settings: Mapping[str, Any], base: RunConfig | None = None) -> dict[str, Any]:
        """See ``RunConfig.current``."""
        found = dict(settings)
        if isinstance(one := found.get("discriminator"), Mapping) and one.get("steps_per_student_step") == 1:
            found["discriminator"] = {"fresh_rollouts": False, **one}  # settings of before do not say
        if isinstance(objective := found.get("objective"), Mapping):
            default = base.objective if isinstance(base, DistillConfig) else ObjectiveConfig()
            found["objective"] = _current_objective(objective, default)
        return found

    @property
    def num_steps(self) -> int:
        """Warm-up, updates of the student and lessons for guidance."""
        return self.discriminator.warmup_steps + self.loop.steps + self.discriminator.guidance_steps

    def for_dry_run(self) -> "DistillConfig":
        """See ``RunConfig.for_dry_run``; a pool of teacher samples is one batch, of which every process has a share."""
        return replace(
            self, start="", discriminator=replace(self.discriminator, pool_size=self.loop.batch_size, pool_nfe=1)
        )

    def limited(self, max_steps: int) -> "DistillConfig":
        """See ``RunConfig.limited``; warm-up and lessons for guidance are at most as long."""
        discriminator = replace(
            self.discriminator,
            warmup_steps=min(self.discriminator.warmup_steps, max_steps),
            guidance_steps=min(self.discriminator.guidance_steps, max_steps),
        )
        return replace(self, loop=replace(self.loop, steps=max_steps), discriminator=discriminator)


def _current_objective(settings: Mapping[str, Any], base: ObjectiveConfig) -> dict[str, Any]:
    """Settings of an objective, all or some, under the names of now.

    Before ``trajectory``, ``score_decomposition`` off meant ``one-step``, and ``moves`` meant ``path`` above 2 and
    ``two-moves`` at 2.
    """
    found = dict(settings)
    if not found.keys() & {"trajectory", "score_decomposition", "moves"}:
        return found
    if base.trajectory == "whole-path" and not found.keys() & {"trajectory", "score_decomposition"}:
        return found  # which no settings of before have: these are its moves
    if "score_decomposition" in found and type(found["score_decomposition"]) is not bool:
        raise UsageError(
            f"objective.score_decomposition was true or false; got {found['score_decomposition']!r}: set "
            "objective.trajectory to one-step, two-moves or path"
        )
    if "trajectory" in found:
        if "score_decomposition" in found:
            raise UsageError("objective.trajectory replaces objective.score_decomposition; give the former alone")
        return found if found["trajectory"] in ("path", "whole-path") else {"moves": None} | found
    is_split, moves = found.pop("score_decomposition", None), found.get("moves", 2)
    if is_split is False:  # more than two moves did not go with it, and do not now
        return found | {"trajectory": "one-step", "moves": None if moves == 2 else moves}
    if "moves" in found and (moves is None or moves == 2):
        return found | {"trajectory": "two-moves", "moves": None}
    if "moves" in found:
        return found | {"trajectory": "path"}
    return found | ({"trajectory": "two-moves", "moves": None} if base.trajectory in ("one-step", "whole-path") else {})
