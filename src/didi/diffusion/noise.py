"""Randomness that is a function of names, not of history.

A generator is derived from a seed and the name of its use (a step, a sequence, a stream). Nothing has to be saved to
resume a run bit for bit, and the random numbers of a sample do not depend on how the set was split into batches.
"""

import hashlib
from collections.abc import Sequence

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
    """

    def __init__(self, seed: int | Sequence[int], indices: Sequence[int], device: torch.device | str = "cpu") -> None:
        seeds = [seed] * len(indices) if isinstance(seed, int) else seed
        self._generators = [named_generator(one, "sequence", index) for one, index in zip(seeds, indices, strict=True)]
        self._device = device

    def __len__(self) -> int:
        return len(self._generators)

    def uniforms(
        self,
        *shape: int,
        dtype: torch.dtype = torch.float64,
        rows: Sequence[int] | None = None,
        device: torch.device | str | None = None,
    ) -> Float[Tensor, "b ..."]:
        """Uniforms in [0, 1) of shape ``[b, *shape]``, the next ones of each sequence's stream.

        Args:
            shape: shape for one sequence.
            dtype: float64, or float32 to imitate single-precision samplers.
            rows: which sequences of the batch draw; all by default.
            device: where these are wanted, if not where the others are.
        """
        generators = self._generators if rows is None else [self._generators[row] for row in rows]
        drawn = torch.empty(len(generators), *shape, dtype=dtype)
        for out, generator in zip(drawn, generators, strict=True):
            torch.rand(*shape, dtype=dtype, generator=generator, out=out)
        return drawn.to(self._device if device is None else device, non_blocking=True)

    def normals(self, *shape: int) -> Float[Tensor, "b ..."]:
        """Standard normal numbers of shape ``[b, *shape]``, the next ones of each sequence's stream; float32."""
        drawn = torch.empty(len(self), *shape)
        for out, generator in zip(drawn, self._generators, strict=True):
            torch.randn(*shape, generator=generator, out=out)
        return drawn.to(self._device, non_blocking=True)
