"""Sampling of one batch in which each sequence may have different given tokens."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.models.bundle import Bundle
from didi.sampling.base import Sampler, refuse_equal_rates
from didi.sampling.memory import check_batch, out_of_memory
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import Frame
from didi.sampling.registry import make_sampler
from didi.sampling.stream import check_finished, num_moves
from didi.torch_defaults import with_torch_defaults


@dataclass(frozen=True)
class Plan:
    """A batch that is ready to be sampled: ``sampler(canvas, times, noise)`` yields its moves.

    Attributes:
        bundle: bundle of the networks.
        sampler: sampler with these networks.
        canvas: sequences, on the device of the networks.
        times: decreasing times of the moves.
        noise: random numbers of the sequences.
        num_moves: largest number of moves, see ``stream.num_moves``.
    """

    bundle: Bundle
    sampler: Sampler
    canvas: Canvas
    times: Float[Tensor, " n"]
    noise: SequenceNoise
    num_moves: int

    def check_finished(self, z: Int[Tensor, "b l"]) -> None:
        """Refuse a last state that is not a finished sample, see ``stream.check_finished``.

        Raises:
            DidiError: a mask is left, or logits were not finite.
        """
        check_finished(self.sampler, z, self.canvas, self.bundle.process.mask_id)


def planned(
    bundle: Bundle,
    canvas: Canvas,
    *,
    indices: Sequence[int],
    seed: int = 0,
    nfe: int | None = None,
    options: SamplingOptions | None = None,
) -> Plan:
    """The plan of one batch; arguments are those of ``completed``.

    The canvas of a protein includes its begin and end symbols, see ``prompt.framed``.

    Raises:
        UsageError: the sampler does not exist or does not fit the bundle, or the batch does not fit in memory.
    """
    chosen = options or SamplingOptions()
    network = bundle.network(chosen.role)
    device = next(iter(network.parameters())).device
    most_moves, size = num_moves(bundle, nfe, canvas.length - Frame.of(network).num_ids, chosen), len(indices)
    sampler, times = make_sampler(bundle, chosen, most_moves), chosen.move_times(most_moves)
    if chosen.times:
        refuse_equal_rates(bundle.process.schedule, times)
    check_batch(bundle, replace(chosen, batch_size=size), canvas.length, most_moves, size)
    on_device = canvas.to(device)
    return Plan(bundle, sampler, on_device, times, SequenceNoise(seed, indices, device, on_device.lengths), most_moves)


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
    """Sample the free positions of one batch.

    Args:
        bundle: from ``didi.load``.
        canvas: ``b`` sequences; given tokens and padding stay as they are.
        indices: number of each sequence. Its random numbers depend on the number and the seed only, not on the batch.
        seed: seed of the random numbers.
        nfe: number of moves, as in ``generate``.
        options: sampler, role, precision and the like; ``batch_size`` is ignored.

    Returns:
        Token ids of all positions, on the CPU.

    Raises:
        UsageError: the sampler does not exist or does not fit the bundle or the canvas, or the batch does not fit in
            memory.
        DidiError: logits are not finite, or memory runs out.
    """
    plan = planned(bundle, canvas, indices=indices, seed=seed, nfe=nfe, options=options)
    z = plan.canvas.tokens
    with out_of_memory(len(indices)):
        for step in plan.sampler(plan.canvas, plan.times, plan.noise):
            z = step.z
        plan.check_finished(z)
    return z.cpu()
