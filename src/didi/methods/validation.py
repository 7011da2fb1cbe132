"""What a distillation measures of its discriminator on held-out sequences."""

import torch
from jaxtyping import Int
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.noise import named_generator
from didi.methods.base import Runtime
from didi.models.discriminator import Discriminator, log_ratio_logits
from didi.objectives.didi import log_density_ratio
from didi.world import world


@torch.no_grad()
def mean_log_ratio(
    discriminator: Discriminator, process: Process, rows: Int[Tensor, "n l"], runtime: Runtime, *, is_clean: bool
) -> float:
    """Mean log-ratio of held-out sequences, clean or corrupted, student over teacher, in nats.

    It is negative where the discriminator tells real sequences from the student's. The corruptions are the same
    whenever it is asked. The processes of ``didi.world`` share the sequences.

    Args:
        discriminator: scores each sequence.
        process: of the student.
        rows: clean sequences.
        runtime: of the method, for the device and the precision.
        is_clean: at t = 0, all that a discriminator of finished samples has read; otherwise at times spread over
            [0, 1].
    """
    t = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows) * (not is_clean)
    shape, generator = (*rows.shape, process.draws_per_position), named_generator(0, "validation-discriminator")
    z_t = process.corrupt(rows, t, torch.rand(shape, dtype=torch.float64, generator=generator))
    z_t, t = world().mine(z_t).to(runtime.device), world().mine(t).to(runtime.device)
    with runtime.cast():
        logits = log_ratio_logits(discriminator, z_t, process.noise_level(discriminator, t))
    total = log_density_ratio(logits, process.is_predicted(z_t)).double().sum()
    return float(world().sum(total)) / len(rows)
