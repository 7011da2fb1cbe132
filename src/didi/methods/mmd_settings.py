"""Settings of the MMD method; "the publication" is https://arxiv.org/abs/2610.06648.

"The public code" is github.com/yandex-research/dlm-mmd.
"""

from dataclasses import dataclass, field, replace
from typing import Literal

from didi.errors import UsageError
from didi.methods.settings import DistillationConfig, OptimizerConfig, at_least, check_sharding
from didi.objectives.mmd import MmdAdvantage

MmdTrajectory = Literal["corrupted-data", "whole-path"]
MmdFeatures = Literal["token", "sequence", "concatenated"]


@dataclass(frozen=True)
class MmdObjective:
    """What is sampled, and the kernel that compares it with the corpus."""

    trajectory: MmdTrajectory = "corrupted-data"
    """How the student generates in training. ``corrupted-data`` (the publication): a sequence of the corpus is
    corrupted to a random time, and all its predicted positions are drawn at once from one pass. ``whole-path`` (ours):
    all ``moves`` moves of the student's own sampler."""
    moves: int | None = None
    """Moves of a ``whole-path``, 1 or more; None for ``corrupted-data``."""
    completions: int = 8
    """Samples of each corrupted sequence of ``corrupted-data``; 4 groups of 2 in the public code. 1 for
    ``whole-path``, whose samples are ``loop.batch_size``."""
    advantage: MmdAdvantage = "groups"
    """``groups`` (the publication): samples of a group share its discrepancy, and the baseline is the other groups'.
    ``leave-one-out`` (ours): each sample has its own cost, from all other samples; the same expected gradient."""
    group_size: int = 2
    """Samples of a group, 2 in the public code."""
    normalise_advantage: bool = True
    """Divide advantages by their root mean square in the batch (ours)."""
    features: MmdFeatures = "token"
    """What is compared. ``token`` (the publication): the features of every position, each a point. ``sequence``: their
    mean over the positions. ``concatenated`` (ours): those of all positions as one vector."""
    layers: tuple[int, ...] = ()
    """Blocks of the frozen teacher after which features are read, from 1; empty: one after a third of the blocks, as
    in the publication (4 of 12). The kernels of several are averaged."""
    feature_times: tuple[float, ...] = (0.0,)
    """Times to which sequences are corrupted before they are read, in [0, 1); the kernels of several are averaged. 0
    reads them as they are (the publication)."""
    bandwidths: tuple[float, ...] = (1.0,)
    """Bandwidths of the Gaussian kernel as multiples of the median distance of corpus features at the start of the run;
    the kernels of several are averaged. The publication has one, chosen for each model: 158 on OpenWebText."""
    corpus_rows: int = 1
    """Sequences of the corpus that a step of ``whole-path`` compares its samples with, for each sample."""
    bank_size: int = 0
    """Sequences of the corpus whose features are computed once and kept, from which those are drawn (ours); 0 reads new
    ones in every step. Of ``whole-path``."""

    def __post_init__(self) -> None:
        at_least(1, self, "completions", "corpus_rows")
        at_least(0, self, "bank_size")
        at_least(2, self, "group_size")
        is_path = self.trajectory == "whole-path"
        if is_path != (self.moves is not None and self.moves >= 1):
            raise UsageError(
                "objective.moves is 1 or more for objective.trajectory whole-path, and not set for corrupted-data; "
                f"got {self.moves} for {self.trajectory}: change one of them"
            )
        if is_path and self.completions != 1:
            raise UsageError(
                "objective.completions is 1 for objective.trajectory whole-path, whose samples are loop.batch_size; "
                f"got {self.completions}: set it to 1"
            )
        if not is_path and (self.bank_size or self.corpus_rows != 1):
            raise UsageError(
                "objective.bank_size and corpus_rows are for objective.trajectory whole-path; got "
                f"{self.bank_size} and {self.corpus_rows} for corrupted-data, which compares samples with the sequence "
                "that they complete: leave them out"
            )
        if any(one < 1 for one in self.layers) or len(set(self.layers)) < len(self.layers):
            raise UsageError(f"objective.layers are different numbers of blocks from 1; got {list(self.layers)}")
        if not self.feature_times or not all(0 <= one < 1 for one in self.feature_times):
            raise UsageError(f"objective.feature_times are one or more in [0, 1); got {list(self.feature_times)}")
        if not self.bandwidths or not all(0 < one < float("inf") for one in self.bandwidths):
            raise UsageError(f"objective.bandwidths are one or more positive numbers; got {list(self.bandwidths)}")

    def check_groups(self, batch_size: int) -> None:
        """Refuse batches whose advantages have no baseline; see ``objectives.mmd.mmd_advantages``."""
        is_path = self.trajectory == "whole-path"
        name, num = ("loop.batch_size", batch_size) if is_path else ("objective.completions", self.completions)
        if self.advantage == "leave-one-out" and num < 3:
            raise UsageError(f"{name} is 3 or more for objective.advantage leave-one-out; got {num}: raise it")
        if self.advantage == "groups" and (num < 2 * self.group_size or num % self.group_size):
            raise UsageError(
                f"{name} is 2 or more times objective.group_size, for whole groups; got {num} and {self.group_size}"
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
    """AdamW of the student; rate, decay and weight decay are those of the public code, which does not clip."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_sharding(self.loop, self.optimizer)
        self.objective.check_groups(self.loop.batch_size)

    def for_dry_run(self) -> "MmdConfig":
        """See ``RunConfig.for_dry_run``; a bank is one batch."""
        bank_size = min(self.objective.bank_size, self.loop.batch_size)
        return replace(self, objective=replace(self.objective, bank_size=bank_size))
