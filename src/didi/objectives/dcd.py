"""Discrete consistency distillation (Sahoo et al. 2025, Sec. 4.2, https://arxiv.org/abs/2506.10892)."""

from functools import partial

from jaxtyping import Float
from torch import Tensor

from didi.diffusion.categorical import Divergence, divergence
from didi.diffusion.rowwise import by_rows


def consistency_divergences(
    student_logits: Float[Tensor, "n v"], target_logits: Float[Tensor, "n v"], kind: Divergence = "backward"
) -> Float[Tensor, " n"]:
    r"""Terms of Eq. 23, :math:`D_\mathrm{KL}(x_\theta(z_t, t) \,\|\, x_{\theta^-}(z_s, s))` of each position, in nats.

    Args:
        student_logits: logits of the clean token at the noisier states; double backward is not supported.
        target_logits: logits at the less noisy states, for the same positions; they get no gradient.
        kind: ``backward`` is KL(student || target) as in the paper; see ``diffusion.categorical.divergence``.

    Returns:
        Divergences in float32. They are computed for a part of the rows at a time, so that the gradient is the only
        additional tensor of n by v elements.

    Raises:
        UsageError: no divergence is called ``kind``.
    """
    return by_rows(partial(_row_divergence, kind=kind), student_logits, target_logits)


def _row_divergence(
    student_logits: Float[Tensor, "n v"], target_logits: Float[Tensor, "n v"], *, kind: Divergence
) -> Float[Tensor, " n"]:
    student, target = student_logits.float().log_softmax(-1), target_logits.float().log_softmax(-1)
    return divergence(kind, target, student)
