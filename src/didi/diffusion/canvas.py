"""Free, given and padding positions of sequences, for prompts, infilling and batches of several lengths."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Canvas:
    """A batch of sequences before they are sampled, corrupted or scored.

    Attributes:
        tokens: token ids. Free positions hold the clean tokens in training and scoring, and any token in sampling,
            where ``Process.prior`` fills them.
        is_free: True where the process corrupts and the sampler writes; False where the token is given.
        is_real: False at padding, which networks do not attend to and sums leave out.
        has_padding: whether any position is padding; stored, so that no value has to be read from the device.
        is_all_free: whether every position is free, and so real; stored for the same reason. False may mean unknown.
    """

    tokens: Int[Tensor, "b l"]
    is_free: Bool[Tensor, "b l"]
    is_real: Bool[Tensor, "b l"]
    has_padding: bool = False
    is_all_free: bool = False

    @classmethod
    def free(cls, tokens: Int[Tensor, "b l"]) -> "Canvas":
        """A canvas without padding whose positions are all free."""
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        return cls(tokens, everywhere, everywhere, is_all_free=True)

    @classmethod
    def blank(cls, num_sequences: int, length: int, device: torch.device | str = "cpu") -> "Canvas":
        """A canvas whose positions are all free, with tokens 0."""
        return cls.free(torch.zeros(num_sequences, length, dtype=torch.long, device=device))

    @classmethod
    def given(cls, tokens: Int[Tensor, "b l"], is_free: Bool[Tensor, "b l"]) -> "Canvas":
        """A canvas without padding; positions that are not free keep their tokens."""
        return cls(tokens, is_free, torch.ones_like(is_free))

    @classmethod
    def padded(cls, tokens: Int[Tensor, "b l"], lengths: Int[Tensor, " b"]) -> "Canvas":
        """Sequences of the given lengths at the start of each row, all free; the rest is padding."""
        is_real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return cls(tokens, is_real, is_real, has_padding=bool((lengths < tokens.shape[1]).any()))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Number of positions l, padding included."""
        return self.tokens.shape[1]

    @property
    def lengths(self) -> list[int] | None:
        """For ``SequenceNoise``: number of real positions of each sequence, which come first; None without padding."""
        return self.is_real.sum(1).tolist() if self.has_padding else None

    @property
    def attention_mask(self) -> Bool[Tensor, "b l"] | None:
        """For ``Denoiser.features``: True at real positions; None without padding."""
        return self.is_real if self.has_padding else None

    def clamped(self, z: Int[Tensor, "b *n l"]) -> Int[Tensor, "b *n l"]:
        """``z``, one or several states of each sequence, with the given tokens (and padding) put back."""
        if self.is_all_free:
            return z
        shape = (len(self), *(1 for _ in z.shape[2:]), self.length)
        return torch.where(self.is_free.view(shape), z, self.tokens.view(shape))

    def with_tokens(self, tokens: Int[Tensor, "b l"]) -> "Canvas":
        """The same positions with other tokens."""
        return replace(self, tokens=tokens)

    @property
    def num_free(self) -> Int[Tensor, " b"]:
        """Number of free positions of each sequence."""
        return self.is_free.sum(1)

    def trimmed(self) -> "Canvas":
        """The canvas without the last columns that are padding in all sequences; waits for the device."""
        if not self.has_padding:
            return self
        width = int(self.is_real.sum(1).max())
        trimmed = self._map(lambda part: part[:, :width])
        return replace(trimmed, has_padding=not bool(trimmed.is_real.all()))

    def concatenated(self, other: "Canvas") -> "Canvas":
        """The sequences of both canvases as one batch; the shorter rows are padded with token 0."""
        width = max(self.length, other.length)
        padded = [
            [F.pad(part, (0, width - canvas.length)) for part in (canvas.tokens, canvas.is_free, canvas.is_real)]
            for canvas in (self, other)
        ]
        is_uneven = self.length != other.length
        tokens, is_free, is_real = (torch.cat(pair) for pair in zip(*padded, strict=True))
        return Canvas(
            tokens,
            is_free,
            is_real,
            has_padding=self.has_padding or other.has_padding or is_uneven,
            is_all_free=self.is_all_free and other.is_all_free and not is_uneven,
        )

    def rows(self, index: Tensor | slice) -> "Canvas":
        """The sequences at ``index``."""
        return self._map(lambda part: part[index])

    def expand(self, num_sequences: int) -> "Canvas":
        """A canvas of one sequence, repeated ``num_sequences`` times."""
        return self._map(lambda part: part.expand(num_sequences, -1))

    def repeat_interleave(self, num: int) -> "Canvas":
        """Each sequence repeated ``num`` times; the copies are consecutive."""
        return self._map(lambda part: part.repeat_interleave(num, 0))

    def to(self, device: torch.device | str) -> "Canvas":
        """The canvas on a device."""
        return self._map(lambda part: part.to(device))

    def _map(self, function: Callable[[Tensor], Tensor]) -> "Canvas":
        """``function`` of the tokens and of both masks, with the same flags."""
        return replace(
            self, tokens=function(self.tokens), is_free=function(self.is_free), is_real=function(self.is_real)
        )

    def mean(self, values: Float[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Mean of ``values`` over the real positions of each sequence."""
        return torch.where(self.is_real, values, 0.0).sum(-1) / self.is_real.sum(-1)

    def mean_per_position(self, sums: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """Mean over sequences of ``sums``, each divided by the number of free positions (1 or more) of its sequence.

        All sequences have the same weight, independent of their lengths.
        """
        if self.is_all_free:
            return sums.sum() / self.tokens.numel()
        return (sums / self.num_free).mean()
