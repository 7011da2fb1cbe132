"""Settings of the MMD method; "the publication" is https://arxiv.org/abs/2610.06648.

"The public code" is github.com/yandex-research/dlm-mmd.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from didi.errors import UsageError
from didi.methods.settings import DistillationConfig, OptimizerConfig, check_at_least, check_sharding
from didi.objectives.mmd import MmdAdvantage

MmdTrajectory = Literal["corrupted-data", "whole-path"]
MmdFeatures = Literal["token", "sequence", "concatenated"]


@dataclass(frozen=True)
class MmdObjective:
    """The student's trajectories, and the kernel that compares samples with the corpus."""

    trajectory: MmdTrajectory = "corrupted-data"
    """How the student generates in training. ``corrupted-data`` (the publication): a sequence of the corpus is
    corrupted to a random time, and all its predicted positions are drawn at once from one pass. ``whole-path`` (not in
    the publication): all ``moves`` moves of the student's ancestral sampler."""
    moves: int | None = None
    """Moves of a ``whole-path``, 1 or more; None for ``corrupted-data``."""
    completions: int = 8
    """Samples of each corrupted sequence for ``corrupted-data``; 4 groups of 2 in the public code. 1 for
    ``whole-path``, where ``loop.batch_size`` is the number of samples."""
    advantage: MmdAdvantage = "groups"
    """``groups`` (the publication): the cost of a sample is the discrepancy of its group, the baseline is the mean
    discrepancy of the other groups. ``leave-one-out`` (not in the publication): the cost of a sample is computed
    with all other samples; the expected gradient is the same."""
    group_size: int = 2
    """Samples of a group for the advantage ``groups``, 2 or more; 2 in the public code."""
    normalise_advantage: bool = True
    """Divide advantages by their root mean square in the batch (not in the publication)."""
    features: MmdFeatures = "token"
    """The points that represent a sequence. ``token`` (the publication): the features of every position, each a point.
    ``sequence``: the mean of the features over positions. ``concatenated`` (not in the publication): the
    features of all positions in one vector."""
    layers: tuple[int, ...] = ()
    """Blocks of the frozen teacher after which features are read, from 1; empty: one after a third of the blocks, as
    in the publication (4 of 12). Kernels of several blocks are averaged."""
    feature_times: tuple[float, ...] = (0.0,)
    """Times to which sequences are corrupted before the teacher reads them, in [0, 1); 0 is no corruption (the
    publication). Kernels of several times are averaged."""
    bandwidths: tuple[float, ...] = (1.0,)
    """Bandwidths of the Gaussian kernel as multiples of the median distance of corpus features at the start of the run.
    Kernels of several bandwidths are averaged. The publication has one absolute bandwidth for each model: 158 on
    OpenWebText."""
    corpus_rows: int = 1
    """Number of corpus sequences in a step of ``whole-path``, for each sample."""
    bank_size: int = 0
    """Size of a bank of corpus sequences whose features are computed once; steps of ``whole-path`` draw from it (not in
    the publication). 0: each step computes the features of new sequences."""

    def __post_init__(self) -> None:
        check_at_least(1, self, "completions", "corpus_rows")
        check_at_least(0, self, "bank_size")
        check_at_least(2, self, "group_size")
        is_path = self.trajectory == "whole-path"
        if is_path != (self.moves is not None and self.moves >= 1):
            raise UsageError(
                "objective.moves is 1 or more for objective.trajectory whole-path, and unset for corrupted-data; "
                f"got {self.moves} for {self.trajectory}: change one of them"
            )
        if is_path and self.completions != 1:
            raise UsageError(
                "objective.completions is 1 for objective.trajectory whole-path, with loop.batch_size samples; "
                f"got {self.completions}: set it to 1"
            )
        if not is_path and (self.bank_size or self.corpus_rows != 1):
            raise UsageError(
                "objective.bank_size and corpus_rows are for objective.trajectory whole-path; got "
                f"{self.bank_size} and {self.corpus_rows} for corrupted-data: leave them out"
            )
        if any(layer < 1 for layer in self.layers) or len(set(self.layers)) < len(self.layers):
            raise UsageError(f"objective.layers are different block numbers, from 1; got {list(self.layers)}")
        if not self.feature_times or not all(0 <= t < 1 for t in self.feature_times):
            raise UsageError(f"objective.feature_times are one or more in [0, 1); got {list(self.feature_times)}")
        if not self.bandwidths or not all(0 < width < float("inf") for width in self.bandwidths):
            raise UsageError(f"objective.bandwidths are one or more positive numbers; got {list(self.bandwidths)}")

    def check_groups(self, batch_size: int) -> None:
        """Refuse batches whose advantages have no baseline; see ``objectives.mmd.mmd_advantages``.

        Raises:
            UsageError: the number of samples does not fit the advantage.
        """
        is_path = self.trajectory == "whole-path"
        name, num_samples = ("loop.batch_size", batch_size) if is_path else ("objective.completions", self.completions)
        if self.advantage == "leave-one-out" and num_samples < 3:
            raise UsageError(f"{name} is 3 or more for objective.advantage leave-one-out; got {num_samples}: raise it")
        if self.advantage == "groups" and (num_samples < 2 * self.group_size or num_samples % self.group_size):
            raise UsageError(
                f"{name} is a multiple of objective.group_size, with a factor of 2 or more; got {num_samples} and "
                f"{self.group_size}"
            )


@dataclass(frozen=True)
class MmdConfig(DistillationConfig):
    """Training of a few-step student by the MMD between its samples and the corpus, in features of its teacher.

    ``loop.batch_size`` counts samples of ``whole-path`` and corrupted sequences of ``corrupted-data``.
    """

    objective: MmdObjective = field(default_factory=MmdObjective)
    optimizer: OptimizerConfig = field(
        default_factory=lambda: OptimizerConfig(learning_rate=1e-4, decay="constant", weight_decay=0.0)
    )
    """AdamW of the student, with rate, decay and weight decay of the public code, which does not clip gradients."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharding(self.loop, self.optimizer)
        self.objective.check_groups(self.loop.batch_size)

    def for_dry_run(self) -> "MmdConfig":
        """See ``RunConfig.for_dry_run``; the bank has at most the size of a batch."""
        bank_size = min(self.objective.bank_size, self.loop.batch_size)
        return replace(self, objective=replace(self.objective, bank_size=bank_size))
