"""What a distillation measures of its discriminator on held-out sequences."""

import torch
from jaxtyping import Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing, corrupt
from didi.diffusion.noise import named_generator
from didi.methods.base import Runtime
from didi.models.discriminator import Discriminator, log_ratio_logits
from didi.objectives.didi import log_density_ratio
from didi.world import world


@torch.no_grad()
def mean_log_ratio(
    discriminator: Discriminator, process: Absorbing, rows: Int[Tensor, "n l"], runtime: Runtime
) -> float:
    """Mean log-ratio of corrupted held-out sequences, student over teacher, in nats.

    It is negative where the discriminator tells real sequences from the student's. The corruptions are the same
    whenever it is asked. The processes of ``didi.world`` share the sequences.

    Args:
        discriminator: scores each sequence.
        process: masked diffusion.
        rows: clean sequences.
        runtime: of the method, for the device and the precision.
    """
    t = (torch.arange(len(rows), dtype=torch.float64) + 0.5) / len(rows)
    uniforms = torch.rand(rows.shape, dtype=torch.float64, generator=named_generator(0, "validation-discriminator"))
    z_t = corrupt(rows, process.schedule.alpha(t), process.mask_id, uniforms)
    z_t, t = world().mine(z_t).to(runtime.device), world().mine(t).to(runtime.device)
    with runtime.cast():
        logits = log_ratio_logits(discriminator, z_t, process.noise_level(discriminator, t))
    total = log_density_ratio(logits, process.is_predicted(z_t)).double().sum()
    return float(world().sum(total)) / len(rows)
