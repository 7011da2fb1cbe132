"""Randomness that is a function of names, not of history.

A generator is derived from a seed and the name of its use (a step, a sequence, a stream). Nothing has to be saved to
resume a run bit for bit, and the random numbers of a sample do not depend on how the set was split into batches.
"""

import hashlib
from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor


def derive_seed(*parts: int | str) -> int:
    """A 63-bit seed that depends on every part and on their order."""
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def named_generator(*parts: int | str, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator seeded by ``derive_seed(*parts)``; the numbers of a seed depend on the type of the device."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


class SequenceNoise:
    """One independent stream of uniforms per sequence, so that a batch may be split without changing them.

    A network's float32 logits depend on the shape of the batch by rounding: a token whose uniform is that near to a
    boundary may still differ.

    Args:
        seed: seed of the whole sample set, or one for each sequence.
        indices: number of each sequence among those of its seed.
        device: where the uniforms are wanted; they are always drawn on the CPU, so devices agree.
        lengths: positions of each sequence without padding, so that padding does not change its numbers; None where
            there is no padding.
    """

    def __init__(
        self,
        seed: int | Sequence[int],
        indices: Sequence[int],
        device: torch.device | str = "cpu",
        lengths: Sequence[int] | None = None,
    ) -> None:
        seeds = [seed] * len(indices) if isinstance(seed, int) else seed
        self._generators = [named_generator(one, "sequence", index) for one, index in zip(seeds, indices, strict=True)]
        self._device, self._lengths = device, lengths

    def __len__(self) -> int:
        return len(self._generators)

    def uniforms(
        self,
        *shape: int,
        dtype: torch.dtype = torch.float64,
        rows: Sequence[int] | None = None,
        device: torch.device | str | None = None,
        positions: int | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Uniforms in [0, 1) of shape ``[b, *shape]``, the next ones of each sequence's stream.

        Args:
            shape: shape for one sequence.
            dtype: float64, or float32 to imitate single-precision samplers.
            rows: which sequences of the batch draw; all by default.
            device: where these are wanted, if not where the others are.
            positions: axis of ``shape`` that runs over positions; a sequence draws none at its padding, where the
                result is 0. None for numbers of the whole sequence.
        """
        which = range(len(self)) if rows is None else rows
        drawn = self._drawn(torch.rand, shape, which, positions, dtype)
        return drawn.to(self._device if device is None else device, non_blocking=True)

    def normals(self, *shape: int, positions: int | None = None) -> Float[Tensor, "b ..."]:
        """Standard normal numbers of shape ``[b, *shape]``, the next ones of each sequence's stream; float32.

        Arguments are those of ``uniforms``.
        """
        drawn = self._drawn(torch.randn, shape, range(len(self)), positions, torch.float32)
        return drawn.to(self._device, non_blocking=True)

    def _drawn(
        self,
        draw: Callable[..., Tensor],
        shape: Sequence[int],
        rows: Sequence[int],
        positions: int | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "b ..."]:
        drawn = torch.zeros(len(rows), *shape, dtype=dtype)
        for out, row in zip(drawn, rows, strict=True):
            if positions is None or self._lengths is None:
                draw(*shape, dtype=dtype, generator=self._generators[row], out=out)
            else:
                own = [*shape[:positions], self._lengths[row], *shape[positions + 1 :]]
                numbers = draw(*own, dtype=dtype, generator=self._generators[row])
                out.narrow(positions, 0, self._lengths[row]).copy_(numbers)
        return drawn
