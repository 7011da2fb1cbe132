"""The discriminator's loss on states of the student and on corrupted real sequences, Eq. 8."""

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion import Process
from didi.diffusion.canvas import Canvas
from didi.methods.base import Figures, Runtime
from didi.models.discriminator import Discriminator, logits_at_budget
from didi.objectives.didi import discriminator_loss, log_density_ratio


def corrupted(process: Process, clean: Canvas, t: Float[Tensor, " b"], draws: Float[Tensor, "b w k"]) -> Canvas:
    """Sequences with their free positions corrupted.

    Args:
        process: of the student.
        clean: the sequences.
        t: their times.
        draws: uniform numbers of as many positions as the sequences have, or more, which are not read.
    """
    z_t = process.corrupt(clean.tokens, t.to(clean.tokens.device), draws[:, : clean.length])
    return clean.with_tokens(clean.clamped(z_t))


def judged(
    runtime: Runtime,
    discriminator: Discriminator,
    process: Process,
    fake: Canvas,
    real: Canvas,
    t: Float[Tensor, " b"],
    num_moves: int | None,
    label_smoothing: float,
) -> tuple[Tensor, Figures]:
    """Loss of Eq. 8, both sides in one forward pass, and the share of sequences on the right side.

    Args:
        runtime: of the method.
        discriminator: the network ``discriminator`` of the method.
        process: of the student.
        fake: states of the student.
        real: corrupted real sequences.
        t: times of both.
        num_moves: of the student, for a discriminator that reads it.
        label_smoothing: see ``discriminator_loss``.
    """
    both = fake.followed_by(real)
    mask = both.attention_mask
    discriminator.train()
    level = process.noise_level(discriminator, t.to(runtime.device).repeat(2))
    logits = runtime.call("discriminator", logits_at_budget, num_moves, both.tokens, level, mask).float()
    of_fake, of_real = logits.chunk(2)
    fake_masks, real_masks = process.is_predicted(both.tokens).chunk(2)
    of_padding: tuple[Tensor | None, Tensor | None] = (None, None)
    if mask is not None:
        of_padding = mask[: len(fake)], mask[len(fake) :]
    fake_is_real, real_is_real = of_padding
    loss = discriminator_loss(
        of_fake,
        of_real,
        fake_masks,
        real_masks,
        label_smoothing=label_smoothing,
        student_is_real=fake_is_real,
        real_is_real=real_is_real,
    )
    is_right = torch.cat(
        [
            log_density_ratio(of_fake, fake_masks, is_real=fake_is_real) > 0,
            log_density_ratio(of_real, real_masks, is_real=real_is_real) < 0,
        ]
    )
    return loss, {"discriminator_loss": loss.detach(), "discriminator_accuracy": is_right.float().mean()}
