"""Our objectives, which recipes share."""

from didi.methods.objective_settings import ObjectiveConfig

# The paper's two moves with the exact variance reductions A and B. The divergence keeps the entropy of samples of many
# steps up; its weight was chosen on ``markov`` (docs/lab-notes.md).
OURS = ObjectiveConfig(
    completions=3,
    advantage="shared-state",
    revealed_only=True,
    divergence_weight=0.35,
    entropy_weight=0.0,
)


def whole_path(num_moves: int) -> ObjectiveConfig:
    """Every move of the student's sampler of ``num_moves`` moves, scored by the finished sample; no regulariser."""
    return ObjectiveConfig(
        trajectory="whole-path",
        moves=num_moves,
        advantage="leave-one-out",
        divergence_weight=0.0,
        entropy_weight=0.0,
    )
