"""Which positions of a sequence exist, which are given, which are free: for prompts, infilling and padding alike."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Canvas:
    """A batch of sequences before they are sampled, corrupted or scored.

    Attributes:
        tokens: token ids; read at positions that are given. What stands at free positions depends on the user: the
            clean tokens in training and scoring, anything in sampling, where ``Process.prior`` fills them.
        is_free: True where the process corrupts and the sampler writes; False where the token is given.
        is_real: False at padding, which no network attends to and no sum counts.
        has_padding: whether a position is not real; kept beside ``is_real`` so that no device has to be asked.
        is_all_free: whether every position is free, and so real; kept for the same reason. False may mean unknown.
    """

    tokens: Int[Tensor, "b l"]
    is_free: Bool[Tensor, "b l"]
    is_real: Bool[Tensor, "b l"]
    has_padding: bool = False
    is_all_free: bool = False

    @classmethod
    def free(cls, tokens: Int[Tensor, "b l"]) -> "Canvas":
        """Every position exists and is free."""
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        return cls(tokens, everywhere, everywhere, is_all_free=True)

    @classmethod
    def blank(cls, num_sequences: int, length: int, device: torch.device | str = "cpu") -> "Canvas":
        """Free positions alone, whose tokens are 0."""
        return cls.free(torch.zeros(num_sequences, length, dtype=torch.long, device=device))

    @classmethod
    def given(cls, tokens: Int[Tensor, "b l"], is_free: Bool[Tensor, "b l"]) -> "Canvas":
        """Every position exists; those that are not free keep their tokens."""
        return cls(tokens, is_free, torch.ones_like(is_free))

    @classmethod
    def padded(cls, tokens: Int[Tensor, "b l"], lengths: Int[Tensor, " b"]) -> "Canvas":
        """Sequences of the given lengths at the start of each row; the rest is padding."""
        is_real = torch.arange(tokens.shape[1], device=tokens.device) < lengths[:, None]
        return cls(tokens, is_real, is_real, has_padding=bool((lengths < tokens.shape[1]).any()))

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def length(self) -> int:
        """Positions l, padding included."""
        return self.tokens.shape[1]

    @property
    def lengths(self) -> list[int] | None:
        """For ``SequenceNoise``: real positions of each sequence, None where all are; padding is at the end."""
        return self.is_real.sum(1).tolist() if self.has_padding else None

    @property
    def attention_mask(self) -> Bool[Tensor, "b l"] | None:
        """For ``Denoiser.features``: where positions are real, None where all are."""
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
        """Free positions of each sequence."""
        return self.is_free.sum(1)

    def trimmed(self) -> "Canvas":
        """Without the last columns where all sequences have padding; the host reads the lengths."""
        if not self.has_padding:
            return self
        width = int(self.is_real.sum(1).max())
        tokens, is_free, is_real = (one[:, :width] for one in (self.tokens, self.is_free, self.is_real))
        return replace(self, tokens=tokens, is_free=is_free, is_real=is_real, has_padding=not bool(is_real.all()))

    def followed_by(self, other: "Canvas") -> "Canvas":
        """The sequences of both, with padding (token 0) up to the longer rows."""
        width = max(self.length, other.length)
        sides = [
            [F.pad(part, (0, width - one.length)) for part in (one.tokens, one.is_free, one.is_real)]
            for one in (self, other)
        ]
        is_uneven = self.length != other.length
        tokens, is_free, is_real = (torch.cat(pair) for pair in zip(*sides, strict=True))
        return Canvas(
            tokens,
            is_free,
            is_real,
            has_padding=self.has_padding or other.has_padding or is_uneven,
            is_all_free=self.is_all_free and other.is_all_free and not is_uneven,
        )

    def rows(self, index: Tensor | slice) -> "Canvas":
        """The sequences at ``index``."""
        return replace(self, tokens=self.tokens[index], is_free=self.is_free[index], is_real=self.is_real[index])

    def expand(self, num_sequences: int) -> "Canvas":
        """One sequence as a batch of ``num_sequences`` equal ones."""
        tokens, is_free, is_real = (one.expand(num_sequences, -1) for one in (self.tokens, self.is_free, self.is_real))
        return replace(self, tokens=tokens, is_free=is_free, is_real=is_real)

    def repeat_interleave(self, num: int) -> "Canvas":
        """Each sequence ``num`` times in a row."""
        tokens, is_free, is_real = (one.repeat_interleave(num, 0) for one in (self.tokens, self.is_free, self.is_real))
        return replace(self, tokens=tokens, is_free=is_free, is_real=is_real)

    def to(self, device: torch.device | str) -> "Canvas":
        """The canvas on a device."""
        tokens, is_free, is_real = (one.to(device) for one in (self.tokens, self.is_free, self.is_real))
        return replace(self, tokens=tokens, is_free=is_free, is_real=is_real)

    def mean(self, values: Float[Tensor, "b l"]) -> Float[Tensor, " b"]:
        """Mean of ``values`` over the real positions of each sequence."""
        return torch.where(self.is_real, values, 0.0).sum(-1) / self.is_real.sum(-1)

    def mean_per_position(self, sums: Float[Tensor, " b"]) -> Float[Tensor, ""]:
        """Mean over sequences of ``sums``, each over the number of its free positions, of which there is one or more.

        Padding and given positions do not count: sequences weigh the same whatever stands beside them in the batch.
        """
        if self.is_all_free:
            return sums.sum() / self.tokens.numel()
        return (sums / self.num_free).mean()
