"""Validation of a discriminator on held-out sequences."""

import torch

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.methods.base import Runtime
from didi.models.discriminator import Discriminator, log_ratio_logits
from didi.objectives.didi import log_density_ratio
from didi.process_group import process_group


@torch.no_grad()
def mean_log_ratio(
    discriminator: Discriminator, process: Process, canvas: Canvas, runtime: Runtime, *, is_clean: bool
) -> float:
    """Mean log-ratio of held-out sequences, clean or corrupted, student over teacher, in nats.

    It is negative if the discriminator distinguishes real sequences from the student's samples. All calls have the same
    corruptions. The processes of ``didi.process_group`` share the work.

    Args:
        discriminator: network that scores each sequence.
        process: process of the student.
        canvas: clean sequences.
        runtime: runtime of the method, for device and precision.
        is_clean: score clean sequences at t = 0, the only time that a discriminator of finished samples was trained at;
            otherwise corrupted sequences at times spread over [0, 1].
    """
    num, shape = len(canvas), (*canvas.tokens.shape, process.draws_per_position)
    t = (torch.arange(num, dtype=torch.float64) + 0.5) / num * (not is_clean)
    generator = named_generator(0, "validation-discriminator")
    z_t = canvas.clamped(process.corrupt(canvas.tokens, t, torch.rand(shape, dtype=torch.float64, generator=generator)))
    z_t, t = process_group().local_rows(z_t).to(runtime.device), process_group().local_rows(t).to(runtime.device)
    canvas = canvas.rows(process_group().local_slice(num)).to(runtime.device)
    with runtime.autocast():
        level = process.noise_level(discriminator, t)
        logits = log_ratio_logits(discriminator, z_t, level, canvas.attention_mask)
    ratios = log_density_ratio(logits, process.is_predicted(z_t), attention_mask=canvas.attention_mask)
    return float(process_group().sum(ratios.double().sum())) / num
