"""Settings of the objective of DiDi-Instruct; "Table", "App." and "row" as in ``didi_settings``."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.categorical import Divergence
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import Schedule, TimeDensity, WeightName, time_weight
from didi.errors import UsageError
from didi.methods.settings import check_at_least, check_finite, check_positive
from didi.models.initial_state import InitialState
from didi.objectives.didi import Grouping, RewardReduction, ScoreReduction

TrajectoryKind = Literal["one-step", "two-moves", "path", "whole-path"]
RewardTime = Literal["finished", "density", "both"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """The DiDi-Instruct objective; the switches of Tables 1-2 and of docs/deviations.md."""

    trajectory: TrajectoryKind = "two-moves"
    """How the student generates in training. ``one-step``: all tokens from the all-mask state. ``two-moves``: 1 -> tau
    -> 0, with the score of both moves, Eq. 9 (the paper). ``path``: the student's ancestral sampler of ``moves`` moves,
    of which a random one is scored, with the reward of a state at a time within that move (not in the paper).
    ``whole-path``: all ``moves`` moves of that sampler are scored, with the reward of the finished sample (not in the
    paper); the only choice for teachers of uniform-state diffusion."""
    moves: int | None = None
    """Moves of a ``path``, 3 or more, or of a ``whole-path``, 1 or more; None for other trajectories. With ``budgets``
    it is None or one of the budgets, and has no effect."""
    budgets: tuple[int, ...] = ()
    """Numbers of moves of a ``whole-path`` for one student (not in the paper): each step draws one of them for all its
    samples. Student and discriminator are conditioned on it. Empty: all steps have ``moves`` moves."""
    budget_conditioning: bool = True
    """Whether the student is conditioned on the number of moves, of ``budgets``; the discriminator always is."""
    initial_mask_ratio: float = 1.0
    """Share of [MASK] in the state that a ``whole-path`` of 1 move starts from, in (0, 1]; the other positions hold
    random tokens, so that the distribution of samples is a mixture of products, as in Di[M]O, whose text models have
    0.5 (not in the paper). 1: all masks, as in masked diffusion."""
    latent_codes: int = 0
    """Number of latent codes of a ``whole-path`` of masked diffusion: the student reads a code at each position, drawn
    uniformly for each sequence and move, so that the distribution of a move is a mixture of products, as in Di4C
    (not in the paper; see ``models.latent``). 2 or more; 0: no latent codes."""
    latent_scale: float = 1.0
    """Standard deviation of the initial embeddings of the codes, divided by that of the teacher's token embeddings;
    positive, used with ``latent_codes``."""
    reward_time: RewardTime = "finished"
    """Time t of the rewards of a ``whole-path``. ``finished``: 0, the reward of the finished sample. ``density``: drawn
    from pi(t). ``both``: 0 for every second sample of the batch, drawn from pi(t) for the rest."""
    reference_steps: int = 0
    """Number of student updates after which the student is copied to a reference, on a ``whole-path`` (not in the
    paper). The discriminator learns from samples of the reference, and the reward of a path adds the log-ratio of its
    probability under student and reference, in nats per sequence, so that the reward is that of the present student.
    The discriminator should have one logit per sequence and no label smoothing, so that its log-ratio has the same
    unit. 2 or more; 0: no reference, the discriminator learns from the student's samples."""
    coupled_time: bool = True
    """Corrupt the samples at the time tau of their intermediate state (App. F.3)."""
    weight: WeightName = "constant"
    """omega(t): 1, or the NELBO's -alpha'/(1 - alpha) (row 12 of docs/deviations.md)."""
    weight_low: float = 0.1
    """Lower bound of omega(t)."""
    weight_high: float = 10.0
    """Upper bound of omega(t); ``inf`` for no bound."""
    time_a: float = 1.0
    """First parameter of the Beta density pi of times, positive (Table 5)."""
    time_b: float = 1.0
    """Second parameter; Beta(2, 5) favours few masks, Beta(5, 2) many."""
    importance_weighting: bool = False
    """Divide by pi(t) as in Eq. 5; without it the effective weight is omega * pi (row 13 of docs/deviations.md)."""
    importance_clip: float = 10.0
    """Upper bound of 1 / pi(t); ``inf`` for no bound."""
    reward_reduction: RewardReduction = "masked-mean"
    """Reduction of a sequence's logits to its reward, Eq. 6."""
    reward_clamp: float | None = None
    """Bound on a log-ratio of the discriminator in nats, positive; 8 in the released code (row 10 of
    docs/deviations.md)."""
    completions: int = 1
    """Completions x of each intermediate state (reduction B). For a ``whole-path``, 2 or more need the advantage
    ``shared-state``: completions are independent given the state before a random move (not in the paper)."""
    corruptions: int = 1
    """Corruptions z_t of each completion, whose rewards are averaged (reduction C)."""
    advantage: Grouping = "batch"
    """Groups of samples whose rewards form the baseline, Eq. 7 (row 11 of docs/deviations.md)."""
    group_size: int = 4
    """Group size of the advantages ``rows`` and ``shared-time``, 2 or more for these."""
    normalise_advantage: bool = True
    """Divide by the group's standard deviation, Eq. 7."""
    advantage_clamp: float | None = None
    """Bound on the absolute value of an advantage after that division, positive; None for no bound, 3 in the released
    code (row 11 of docs/deviations.md)."""
    revealed_only: bool = False
    """Score only positions that the corruption reveals (reduction A)."""
    pg_reduction: ScoreReduction = "sum"
    """Sum of log-probabilities over tokens, or their mean (row 16 of docs/deviations.md)."""
    divergence: Divergence = "forward"
    """Divergence of the regulariser."""
    divergence_weight: float = 0.05
    """Weight of the divergence from the teacher, at both moves (App. F.3)."""
    entropy_weight: float = 0.0005
    """Weight of the entropy bonus, at both moves (App. F.3)."""

    def __post_init__(self) -> None:
        check_finite(self, "weight_high", "importance_clip")
        if self.reference_steps < 0 or self.reference_steps == 1:
            raise UsageError(
                f"objective.reference_steps is 2 or more, or 0 for no reference; got {self.reference_steps}"
            )
        check_at_least(1, self, "completions", "corruptions", "group_size")
        min_moves = {"path": 3, "whole-path": 1}.get(self.trajectory)
        self._check_budgets()
        self._check_initial_state()
        self._check_latent()
        if (
            min_moves is not None
            and not (self.budgets and self.moves is None)
            and (self.moves is None or self.moves < min_moves)
        ):
            raise UsageError(
                f"objective.moves is the number of moves of trajectory {self.trajectory}, {min_moves} or more; got "
                f"{self.moves}: set it, or set objective.trajectory to two-moves"
            )
        if min_moves is None and self.moves is not None:
            raise UsageError(
                f"objective.moves is for trajectory path or whole-path; got {self.moves} with {self.trajectory}: set "
                "objective.trajectory to path or whole-path, or leave objective.moves out"
            )
        self._check_whole_path()
        check_at_least(0, self, "divergence_weight", "entropy_weight", "weight_low", "importance_clip")
        check_positive(self, "time_a", "time_b", "reward_clamp", "advantage_clamp", "latent_scale")
        if self.weight_low > self.weight_high:
            raise UsageError(
                f"objective.weight_low is at most objective.weight_high; got {self.weight_low} and {self.weight_high}: "
                "lower the former or raise the latter"
            )

    def _check_budgets(self) -> None:
        """Refuse budgets that are invalid or contradict other settings."""
        if not self.budgets:
            if not self.budget_conditioning:
                raise UsageError("objective.budget_conditioning is off with objective.budgets only; got none: set them")
            return
        got = f"got {', '.join(map(str, self.budgets))}"
        if self.trajectory != "whole-path":
            raise UsageError(
                f"objective.budgets are for trajectory whole-path; {got} with {self.trajectory}: leave them out, or "
                "set objective.trajectory to whole-path"
            )
        if len(set(self.budgets)) < len(self.budgets) or len(self.budgets) < 2 or min(self.budgets) < 1:
            raise UsageError(
                f"objective.budgets are two or more different numbers of moves, each 1 or more; {got}: change them, "
                "or set objective.moves instead"
            )
        if self.moves is not None and self.moves not in self.budgets:
            raise UsageError(
                f"objective.moves is one of objective.budgets, if these are set; {got} and moves {self.moves}: set "
                "moves to one of them"
            )

    def _check_initial_state(self) -> None:
        """Refuse random tokens in the initial state of trajectories other than a single move."""
        if not 0 < self.initial_mask_ratio <= 1:
            raise UsageError(f"objective.initial_mask_ratio lies in (0, 1]; got {self.initial_mask_ratio}")
        is_single = self.trajectory == "whole-path" and self.moves == 1 and self.completions == 1 and not self.budgets
        if self.initial_mask_ratio < 1 and not is_single:
            raise UsageError(
                "objective.initial_mask_ratio is below 1 for trajectory whole-path of moves 1, completions 1 and no "
                f"budgets; got {self.initial_mask_ratio} with {self.trajectory}, {self.moves}, {self.completions} and "
                f"{len(self.budgets)} budgets: change these, or set initial_mask_ratio to 1"
            )

    def _check_latent(self) -> None:
        """Refuse latent codes for trajectories other than whole paths from all masks."""
        if self.latent_codes < 0 or self.latent_codes == 1:
            raise UsageError(f"objective.latent_codes is 2 or more, or 0 for none; got {self.latent_codes}")
        if not self.latent_codes:
            if self.latent_scale != 1:
                raise UsageError(
                    f"objective.latent_scale is used with objective.latent_codes only; got {self.latent_scale:g} with "
                    "0: set latent_codes, or leave latent_scale out"
                )
            return
        if self.trajectory != "whole-path" or self.initial_mask_ratio < 1:
            raise UsageError(
                "objective.latent_codes are for trajectory whole-path and initial_mask_ratio 1; got "
                f"{self.latent_codes} with {self.trajectory} and {self.initial_mask_ratio:g}: change these, or "
                "set latent_codes to 0"
            )

    @property
    def initial_state(self) -> InitialState | None:
        """Distribution of the initial state of a one-step student; None for all masks."""
        return InitialState(self.initial_mask_ratio) if self.initial_mask_ratio < 1 else None

    def at_step(self, seed: int, step: int) -> "ObjectiveConfig":
        """The objective of a training step: ``moves`` is drawn from ``budgets``, if there are budgets.

        Args:
            seed: seed of the run.
            step: step of the run, counted with the warm-up.
        """
        if not self.budgets:
            return self
        drawn = torch.randint(len(self.budgets), (), generator=named_generator(seed, "budget", step))
        return replace(self, moves=self.budgets[int(drawn)])

    def _check_whole_path(self) -> None:
        """Refuse settings without effect on a whole path, and settings of whole paths with other trajectories."""
        if self.trajectory != "whole-path":
            for name, default in (("reward_time", "finished"), ("reference_steps", 0)):
                if (value := getattr(self, name)) != default:
                    raise UsageError(
                        f"objective.{name} is for trajectory whole-path; got {value} with {self.trajectory}: set it to "
                        f"{default}, or set objective.trajectory to whole-path"
                    )
            return
        if (self.completions > 1) != (self.advantage == "shared-state"):
            raise UsageError(
                "with trajectory whole-path, objective.completions is 2 or more for advantage shared-state and 1 for "
                f"other advantages; got {self.completions} and {self.advantage}: set advantage to shared-state, or "
                "completions to 1 and advantage to leave-one-out"
            )
        needed: dict[str, Any] = {"revealed_only": False, "divergence_weight": 0, "entropy_weight": 0}
        needed["coupled_time"] = True  # a whole path has no time tau
        if self.reward_time == "finished":
            needed["corruptions"] = 1
            needed |= {"time_a": 1, "time_b": 1}
        if self.reward_time != "density":  # both are infinite or undefined at t = 0
            needed |= {"weight": "constant", "importance_weighting": False}
        wrong = [f"{name} {value}" for name, value in needed.items() if getattr(self, name) != value]
        if self.advantage == "shared-time":
            wrong.append("advantage batch, rows or leave-one-out")
        if wrong:
            raise UsageError(
                f"objective.trajectory whole-path with reward_time {self.reward_time} needs objective."
                f"{', objective.'.join(wrong)}: set these, or choose another trajectory"
            )

    def time_weights(self, t: Float[Tensor, " s"], schedule: Schedule) -> Float[Tensor, " s"]:
        r""":math:`\omega(t)`, or :math:`\omega(t)/\pi(t)` with importance weighting; float32."""
        weight = time_weight(self.weight, schedule, t, low=self.weight_low, high=self.weight_high)
        if self.importance_weighting:
            density = TimeDensity(self.time_a, self.time_b).density(t)
            weight = weight * (1 / density).clamp(max=self.importance_clip)
        return weight.float()


def upgraded_objective(settings: Mapping[str, Any], base: ObjectiveConfig) -> dict[str, Any]:
    """All or some settings of an objective of an earlier version, as settings of this version.

    Before ``trajectory`` existed, ``score_decomposition`` off meant ``one-step``, ``moves`` above 2 meant ``path`` and
    ``moves`` 2 meant ``two-moves``. The record of a run has all settings of its version; newer settings get their
    defaults, which do what earlier versions did. Only whole paths have a reference.

    Args:
        settings: names and values as they were written.
        base: objective that gives missing settings their values.

    Raises:
        UsageError: ``score_decomposition`` is not a boolean, or stands beside ``trajectory``.
    """
    result, fields = dict(settings), ObjectiveConfig.__dataclass_fields__
    if len(result.keys() & fields.keys()) > len(fields) / 2:
        renamed = ("trajectory", "moves")
        result = {name: entry.default for name, entry in fields.items() if name not in renamed} | result
    if not result.keys() & {"trajectory", "score_decomposition", "moves"}:
        return result
    if base.trajectory == "whole-path" and not result.keys() & {"trajectory", "score_decomposition"}:
        return result  # earlier versions had no whole paths: ``moves`` are the moves of the base's path
    if "score_decomposition" in result and type(result["score_decomposition"]) is not bool:
        raise UsageError(
            f"objective.score_decomposition was true or false; got {result['score_decomposition']!r}: set "
            "objective.trajectory to one-step, two-moves or path"
        )
    if "trajectory" in result:
        if "score_decomposition" in result:
            raise UsageError("objective.trajectory replaces objective.score_decomposition; give the former alone")
        if result["trajectory"] == "whole-path":
            return result
        return {"reference_steps": 0} | ({} if result["trajectory"] == "path" else {"moves": None}) | result
    result = {"reference_steps": 0} | result
    is_split, moves = result.pop("score_decomposition", None), result.get("moves", 2)
    if is_split is False:  # other numbers of moves were refused, and still are
        return result | {"trajectory": "one-step", "moves": None if moves == 2 else moves}
    if "moves" in result and (moves is None or moves == 2):
        return result | {"trajectory": "two-moves", "moves": None}
    if "moves" in result:
        return result | {"trajectory": "path"}
    if base.trajectory in ("one-step", "whole-path"):
        return result | {"trajectory": "two-moves", "moves": None}
    return result
