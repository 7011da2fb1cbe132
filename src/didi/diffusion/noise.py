"""Random generators that are derived from names and carry no state between uses.

A generator is derived from a seed and the name of its use (a step, a sequence, a stream). A run is resumed bit for bit
without saved generator states, and the random numbers of a sample do not depend on how the set was split into batches.
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
    """A generator seeded by ``derive_seed(*parts)``; the same seed gives other numbers on another type of device."""
    return torch.Generator(device).manual_seed(derive_seed(*parts))


class SequenceNoise:
    """One independent stream of random numbers per sequence, so that splitting a batch does not change them.

    Rounding makes the float32 logits of a network depend on the shape of the batch. A token may therefore differ in
    rare cases, where its uniform number lies within the rounding error of a boundary between two tokens.

    Args:
        seed: seed of the whole sample set, or one for each sequence.
        indices: number of each sequence among the sequences with the same seed.
        device: device of the results. Numbers are always drawn on the CPU, so that they do not depend on the device.
        lengths: number of positions of each sequence without padding, so that padding does not change its numbers; None
            without padding.
    """

    def __init__(
        self,
        seed: int | Sequence[int],
        indices: Sequence[int],
        device: torch.device | str = "cpu",
        lengths: Sequence[int] | None = None,
    ) -> None:
        seeds = [seed] * len(indices) if isinstance(seed, int) else seed
        self._generators = [
            named_generator(sequence_seed, "sequence", index)
            for sequence_seed, index in zip(seeds, indices, strict=True)
        ]
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
        """The next uniform numbers in [0, 1) of each sequence's stream, of shape ``[b, *shape]``.

        Args:
            shape: shape for one sequence.
            dtype: float64, or float32 to imitate single-precision samplers.
            rows: sequences of the batch that draw numbers; all by default.
            device: device of the result; that of the constructor by default.
            positions: axis of ``shape`` that runs over positions; a sequence draws no numbers at its padding, where
                the result is 0. None if no axis does.
        """
        rows = range(len(self)) if rows is None else rows
        numbers = self._draw(torch.rand, shape, rows, positions, dtype)
        return numbers.to(self._device if device is None else device, non_blocking=True)

    def normals(self, *shape: int, positions: int | None = None) -> Float[Tensor, "b ..."]:
        """The next standard normal numbers of each sequence's stream, of shape ``[b, *shape]``; float32.

        Arguments are those of ``uniforms``.
        """
        numbers = self._draw(torch.randn, shape, range(len(self)), positions, torch.float32)
        return numbers.to(self._device, non_blocking=True)

    def _draw(
        self,
        distribution: Callable[..., Tensor],
        shape: Sequence[int],
        rows: Sequence[int],
        positions: int | None,
        dtype: torch.dtype,
    ) -> Float[Tensor, "b ..."]:
        numbers = torch.zeros(len(rows), *shape, dtype=dtype)
        for out, row in zip(numbers, rows, strict=True):
            if positions is None or self._lengths is None:
                distribution(*shape, dtype=dtype, generator=self._generators[row], out=out)
            else:
                unpadded_shape = [*shape[:positions], self._lengths[row], *shape[positions + 1 :]]
                unpadded = distribution(*unpadded_shape, dtype=dtype, generator=self._generators[row])
                out.narrow(positions, 0, self._lengths[row]).copy_(unpadded)
        return numbers
