"""The choice among the candidates of re-ranked moves by their reward, minus the log-ratio; Eq. 11 of the paper."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.categorical import sample_categorical
from didi.models.discriminator import Discriminator, log_ratio_logits
from didi.models.guidance import Guidance
from didi.objectives.didi import log_density_ratio
from didi.sampling.base import open_positions


def candidate_weights(
    discriminator: Discriminator,
    process: Process,
    guidance: Guidance,
    z: Int[Tensor, "b l"],
    canvas: Canvas,
    s: Float[Tensor, ""],
) -> Float[Tensor, " b"]:
    """Logits of the choice among candidates: rewards divided by the rank temperature, float32.

    Args:
        discriminator: estimates the log-ratio of student over teacher.
        process: process of the student.
        guidance: reduction and rank temperature.
        z: candidates.
        canvas: canvas of ``z``.
        s: time of ``z``.
    """
    mask = canvas.attention_mask
    level = process.noise_level(discriminator, s.to(z.device).expand(len(z)))
    logits = log_ratio_logits(discriminator, z, level, mask)
    is_open = open_positions(process, z, canvas)
    log_ratio = log_density_ratio(logits, is_open, reduction=guidance.reduction, attention_mask=mask)
    return -log_ratio / guidance.rank_temperature


def chosen_candidates(
    log_weights: Float[Tensor, "b m"], guidance: Guidance, uniforms: Float[Tensor, " b"]
) -> Int[Tensor, " b"]:
    """Index of the chosen candidate of each row: drawn with ``log_weights`` as logits, or the best.

    Args:
        log_weights: from ``candidate_weights``.
        guidance: ``select`` chooses between drawing and the best.
        uniforms: uniform numbers of the draw.
    """
    if guidance.select == "best":
        return torch.argmax(log_weights, 1)
    return sample_categorical(log_weights, uniforms)
