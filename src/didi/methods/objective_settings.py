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
from didi.methods.settings import at_least, finite, positive
from didi.models.initial_state import InitialState
from didi.objectives.didi import Grouping, RewardReduction, ScoreReduction

TrajectoryKind = Literal["one-step", "two-moves", "path", "whole-path"]
RewardTime = Literal["finished", "density", "both"]


@dataclass(frozen=True)
class ObjectiveConfig:
    """The DiDi-Instruct objective; the switches of Tables 1-2 and of docs/deviations.md."""

    trajectory: TrajectoryKind = "two-moves"
    """How the student generates in training. ``one-step``: all tokens from the all-mask state. ``two-moves``: 1 -> tau
    -> 0, with the score of both moves, Eq. 9 (the paper). ``path``: states come from the student's own sampler of
    ``moves`` moves, and a random one of them is scored by its state at a time within it (ours). ``whole-path``: all
    ``moves`` moves of that sampler are scored, by the finished sample (ours); teachers of uniform-state diffusion have
    no other."""
    moves: int | None = None
    """Moves of a ``path``, 3 or more, or of a ``whole-path``, 1 or more; None for the others. With ``budgets``, None or
    one of them, which makes no difference."""
    budgets: tuple[int, ...] = ()
    """Numbers of moves of a ``whole-path`` for one student: each step draws one of them, the same for all its samples
    (ours). Student and discriminator read it. Empty: ``moves`` alone."""
    budget_conditioning: bool = True
    """Whether the student reads which of the ``budgets`` it samples with; the discriminator always does."""
    initial_mask_ratio: float = 1.0
    """Share of [MASK] in the state that a ``whole-path`` of 1 move starts from, in (0, 1]; the other positions hold
    random tokens, so that the student's samples are those of a mixture of products (ours, after Di[M]O, whose text
    models have 0.5). 1: masks alone, as in masked diffusion."""
    latent_codes: int = 0
    """Number of latent codes of a ``whole-path`` of masked diffusion: the student reads a code at each position, drawn
    uniformly and anew for each sequence and move, so that a move is a mixture of products (ours, after Di4C; see
    ``models.latent``). 2 or more; 0: none."""
    latent_scale: float = 1.0
    """Standard deviation of the initial embeddings of the codes over that of the teacher's token embeddings, positive;
    read with ``latent_codes``."""
    reward_time: RewardTime = "finished"
    """Time t of the rewards of a ``whole-path``: 0, the finished sample itself; drawn from pi(t); or 0 in every other
    sample of the batch and drawn from pi(t) in the rest."""
    reference_steps: int = 0
    """Updates of the student between copies of it, on a ``whole-path``: the discriminator learns from samples of the
    last copy, the reference, and the reward of a path adds the log-ratio of its probability under student and
    reference, in nats a sequence, so that it does not lag behind the student (ours). It goes with one logit a sequence
    and without label smoothing, which are in these units. 2 or more; 0: it learns from the student's own samples."""
    coupled_time: bool = True
    """Corrupt the samples at the time tau of their intermediate state (App. F.3)."""
    weight: WeightName = "constant"
    """omega(t): 1, or the NELBO's -alpha'/(1 - alpha) (row 12)."""
    weight_low: float = 0.1
    """Least omega."""
    weight_high: float = 10.0
    """Greatest omega; ``inf`` for no bound."""
    time_a: float = 1.0
    """First parameter of the Beta density pi of times, positive (Table 5)."""
    time_b: float = 1.0
    """Second parameter; Beta(2, 5) favours few masks, Beta(5, 2) many."""
    importance_weighting: bool = False
    """Divide by pi(t) as in Eq. 5; off, the effective weight is omega * pi (row 13)."""
    importance_clip: float = 10.0
    """Greatest 1 / pi(t); ``inf`` for no bound."""
    reward_reduction: RewardReduction = "masked-mean"
    """How a sequence's logits become its reward, Eq. 6."""
    reward_clamp: float | None = None
    """Bound on a log-ratio of the discriminator in nats, positive; 8 in the released code (row 10)."""
    completions: int = 1
    """Completions x of each intermediate state (reduction B). Of a ``whole-path``, 2 or more go with the advantage
    ``shared-state``: they are independent given the state before a random move (ours)."""
    corruptions: int = 1
    """Corruptions z_t of each completion whose rewards are used (reduction C)."""
    advantage: Grouping = "batch"
    """Whose rewards form the baseline, Eq. 7 (row 11)."""
    group_size: int = 4
    """Group size of ``rows`` and ``shared-time``, for them 2 or more."""
    normalise_advantage: bool = True
    """Divide by the group's standard deviation, Eq. 7."""
    advantage_clamp: float | None = None
    """Bound on the absolute value of an advantage after that division, positive; None for no bound, 3 in the released
    code (row 11)."""
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
        finite(self, "weight_high", "importance_clip")
        if self.reference_steps < 0 or self.reference_steps == 1:
            raise UsageError(
                "objective.reference_steps is 2 or more, since a reference of each update is the student itself, or 0 "
                f"for none; got {self.reference_steps}"
            )
        at_least(1, self, "completions", "corruptions", "group_size")
        least = {"path": 3, "whole-path": 1}.get(self.trajectory)
        self._check_budgets()
        self._check_initial_state()
        self._check_latent()
        if (
            least is not None
            and not (self.budgets and self.moves is None)
            and (self.moves is None or self.moves < least)
        ):
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
        positive(self, "time_a", "time_b", "reward_clamp", "advantage_clamp", "latent_scale")
        if self.weight_low > self.weight_high:
            raise UsageError(
                f"objective.weight_low is at most objective.weight_high; got {self.weight_low} and {self.weight_high}: "
                "lower the former or raise the latter"
            )

    def _check_budgets(self) -> None:
        """Refuse numbers of moves that are none, that are one, or that contradict other settings."""
        if not self.budgets:
            if not self.budget_conditioning:
                raise UsageError("objective.budget_conditioning is off with objective.budgets only; got none: set them")
            return
        given = f"got {', '.join(map(str, self.budgets))}"
        if self.trajectory != "whole-path":
            raise UsageError(
                f"objective.budgets are for trajectory whole-path; {given} with {self.trajectory}: leave them out, or "
                "set objective.trajectory to whole-path"
            )
        if len(set(self.budgets)) < len(self.budgets) or len(self.budgets) < 2 or min(self.budgets) < 1:
            raise UsageError(
                f"objective.budgets are two or more different numbers of moves, each 1 or more; {given}: change them, "
                "or set objective.moves instead"
            )
        if self.moves is not None and self.moves not in self.budgets:
            raise UsageError(
                f"objective.moves is one of objective.budgets where these are given; {given} and moves {self.moves}: "
                "set it to one of them"
            )

    def _check_initial_state(self) -> None:
        """Refuse random tokens in the first state of what is not a single move."""
        if not 0 < self.initial_mask_ratio <= 1:
            raise UsageError(f"objective.initial_mask_ratio lies in (0, 1]; got {self.initial_mask_ratio}")
        is_single = self.trajectory == "whole-path" and self.moves == 1 and self.completions == 1 and not self.budgets
        if self.initial_mask_ratio < 1 and not is_single:
            raise UsageError(
                "objective.initial_mask_ratio is below 1 for trajectory whole-path of moves 1, completions 1 and no "
                f"budgets; got {self.initial_mask_ratio} with {self.trajectory}, {self.moves}, {self.completions} and "
                f"{len(self.budgets)} budgets: set these, or initial_mask_ratio to 1"
            )

    def _check_latent(self) -> None:
        """Refuse latent codes of what is no whole path from masks alone."""
        if self.latent_codes < 0 or self.latent_codes == 1:
            raise UsageError(f"objective.latent_codes is 2 or more, or 0 for none; got {self.latent_codes}")
        if not self.latent_codes:
            if self.latent_scale != 1:
                raise UsageError(
                    f"objective.latent_scale is read with objective.latent_codes only; got {self.latent_scale:g} with "
                    "0: set latent_codes, or leave latent_scale out"
                )
            return
        if self.trajectory != "whole-path" or self.initial_mask_ratio < 1:
            raise UsageError(
                "objective.latent_codes are for trajectory whole-path and initial_mask_ratio 1; got "
                f"{self.latent_codes} with {self.trajectory} and {self.initial_mask_ratio:g}: set these, or "
                "latent_codes to 0"
            )

    @property
    def initial_state(self) -> InitialState | None:
        """What a one-step student starts from; None for masks alone."""
        return InitialState(self.initial_mask_ratio) if self.initial_mask_ratio < 1 else None

    def at_step(self, seed: int, step: int) -> "ObjectiveConfig":
        """The objective of a step of training: ``moves`` is the one of ``budgets`` that is drawn for the step.

        Args:
            seed: of the run.
            step: of the run, the warm-up included.
        """
        if not self.budgets:
            return self
        drawn = torch.randint(len(self.budgets), (), generator=named_generator(seed, "budget", step))
        return replace(self, moves=self.budgets[int(drawn)])

    def _check_whole_path(self) -> None:
        """Refuse settings that have no meaning on a whole path, and a time of rewards elsewhere."""
        if self.trajectory != "whole-path":
            for name, default in (("reward_time", "finished"), ("reference_steps", 0)):
                if (value := getattr(self, name)) != default:
                    raise UsageError(
                        f"objective.{name} is for trajectory whole-path; got {value} with {self.trajectory}: set it to "
                        f"{default}, or objective.trajectory to whole-path"
                    )
            return
        if (self.completions > 1) != (self.advantage == "shared-state"):
            raise UsageError(
                "on a whole-path objective.completions of 2 or more and advantage shared-state go together; got "
                f"{self.completions} and {self.advantage}: set both, or completions to 1 and advantage to leave-one-out"
            )
        needed: dict[str, Any] = {"revealed_only": False, "divergence_weight": 0, "entropy_weight": 0}
        needed["coupled_time"] = True  # there is no time tau
        if self.reward_time == "finished":
            needed["corruptions"] = 1
            needed |= {"time_a": 1, "time_b": 1}
        if self.reward_time != "density":  # at t = 0 neither exists
            needed |= {"weight": "constant", "importance_weighting": False}
        wrong = [f"{name} {value}" for name, value in needed.items() if getattr(self, name) != value]
        if self.advantage == "shared-time":
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


def current_objective(settings: Mapping[str, Any], base: ObjectiveConfig) -> dict[str, Any]:
    """Settings of an objective, all or some, under the names of now.

    Before ``trajectory``, ``score_decomposition`` off meant ``one-step``, and ``moves`` meant ``path`` above 2 and
    ``two-moves`` at 2. The record of a run has all settings; those that it lacks came later, and their defaults are
    what was done before. No trajectory but whole paths has a reference.
    """
    found, fields = dict(settings), ObjectiveConfig.__dataclass_fields__
    if len(found.keys() & fields.keys()) > len(fields) / 2:
        renamed = ("trajectory", "moves")
        found = {name: one.default for name, one in fields.items() if name not in renamed} | found
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
        if found["trajectory"] == "whole-path":
            return found
        return {"reference_steps": 0} | ({} if found["trajectory"] == "path" else {"moves": None}) | found
    found = {"reference_steps": 0} | found
    is_split, moves = found.pop("score_decomposition", None), found.get("moves", 2)
    if is_split is False:  # more than two moves did not go with it, and do not now
        return found | {"trajectory": "one-step", "moves": None if moves == 2 else moves}
    if "moves" in found and (moves is None or moves == 2):
        return found | {"trajectory": "two-moves", "moves": None}
    if "moves" in found:
        return found | {"trajectory": "path"}
    return found | ({"trajectory": "two-moves", "moves": None} if base.trajectory in ("one-step", "whole-path") else {})
