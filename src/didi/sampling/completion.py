"""Sampling of a batch in which each sequence has given tokens of its own."""

from collections.abc import Sequence
from dataclasses import replace

from jaxtyping import Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.models.bundle import Bundle
from didi.sampling.memory import check_batch, out_of_memory
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import make_sampler
from didi.sampling.stream import check_finished, num_moves
from didi.torch_defaults import with_torch_defaults


@with_torch_defaults
def completed(
    bundle: Bundle,
    canvas: Canvas,
    *,
    indices: Sequence[int],
    seed: int = 0,
    nfe: int | None = None,
    options: SamplingOptions | None = None,
) -> Int[Tensor, "b l"]:
    """Sample the free positions of a batch in one go.

    Args:
        bundle: From ``didi.load``.
        canvas: Of ``b`` sequences; given tokens and padding stay as they are.
        indices: Number of each sequence, which its random numbers depend on; a sample does not depend on the others
            of its batch.
        seed: Of the random numbers.
        nfe: Moves, as in ``generate``.
        options: Sampler, role, precision and the like; ``batch_size`` is not read.

    Returns:
        Token ids of all positions, on the CPU.

    Raises:
        UsageError: The sampler does not exist or does not fit the bundle or the canvas, or the batch does not fit in
            memory.
        DidiError: Logits are not finite, or memory runs out.
    """
    chosen = options or SamplingOptions()
    device = next(iter(bundle.network(chosen.role).parameters())).device
    asked = num_moves(bundle, nfe, canvas.length, chosen)
    sampler, times = make_sampler(bundle, chosen, asked), chosen.move_times(asked)
    size = len(indices)
    check_batch(bundle, replace(chosen, batch_size=size), canvas.length, asked, size)
    there = canvas.to(device)
    z = there.tokens
    with out_of_memory(size):
        for step in sampler(there, times, SequenceNoise(seed, indices, device, there.lengths)):
            z = step.z
        check_finished(sampler, z, there, bundle.process.mask_id)
    return z.cpu()
