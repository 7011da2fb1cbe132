"""One discriminator update: its loss on states of the student and on corrupted real sequences, Eq. 8."""

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.methods.base import Metrics, Runtime
from didi.models.discriminator import Discriminator, logits_at_budget
from didi.objectives.didi import discriminator_loss, log_density_ratio


def corrupted(process: Process, clean: Canvas, t: Float[Tensor, " b"], draws: Float[Tensor, "b w k"]) -> Canvas:
    """Corrupt the free positions of sequences.

    Args:
        process: process of the student.
        clean: clean sequences.
        t: times.
        draws: uniform numbers for w positions; w is the length of the sequences or more, the excess is not read.
    """
    z_t = process.corrupt(clean.tokens, t.to(clean.tokens.device), draws[:, : clean.length])
    return clean.with_tokens(clean.clamped(z_t))


def discriminator_step_loss(
    runtime: Runtime,
    discriminator: Discriminator,
    process: Process,
    fake: Canvas,
    real: Canvas,
    t: Float[Tensor, " b"],
    num_moves: int | None,
    label_smoothing: float,
) -> tuple[Tensor, Metrics]:
    """Loss of Eq. 8 from one forward pass on both kinds of states; metrics are the loss and the accuracy.

    Args:
        runtime: runtime of the method.
        discriminator: trained network ``discriminator`` of the method.
        process: process of the student.
        fake: states of the student.
        real: corrupted real sequences.
        t: times of ``fake``, and of ``real``.
        num_moves: moves of the student; read by a discriminator that is conditioned on them.
        label_smoothing: see ``discriminator_loss``.
    """
    both = fake.concatenated(real)
    mask = both.attention_mask
    discriminator.train()
    level = process.noise_level(discriminator, t.to(runtime.device).repeat(2))
    logits = runtime.call("discriminator", logits_at_budget, num_moves, both.tokens, level, mask).float()
    fake_logits, real_logits = logits.chunk(2)
    fake_masks, real_masks = process.is_predicted(both.tokens).chunk(2)
    fake_attention_mask, real_attention_mask = (None, None) if mask is None else mask.chunk(2)
    loss = discriminator_loss(
        fake_logits,
        real_logits,
        fake_masks,
        real_masks,
        label_smoothing=label_smoothing,
        student_attention_mask=fake_attention_mask,
        real_attention_mask=real_attention_mask,
    )
    is_correct = torch.cat(
        [
            log_density_ratio(fake_logits, fake_masks, attention_mask=fake_attention_mask) > 0,
            log_density_ratio(real_logits, real_masks, attention_mask=real_attention_mask) < 0,
        ]
    )
    return loss, {"discriminator_loss": loss.detach(), "discriminator_accuracy": is_correct.float().mean()}
