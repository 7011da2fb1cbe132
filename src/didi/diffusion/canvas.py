"""Which positions of a sequence exist, which are given, which are free: for prompts, infilling and padding alike."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


@dataclass(frozen=True)
class Canvas:
    """A batch of sequences before they are sampled, corrupted or scored.

    Attributes:
        tokens: token ids; read at positions that are given. What stands at free positions depends on the user: the
            clean tokens in training and scoring, anything in sampling, where ``Process.prior`` fills them.
        is_free: True where the process corrupts and the sampler writes; False where the token is given.
        is_real: False at padding, which no network attends to and no sum counts.
        has_padding: whether a position is not real; kept beside ``is_real`` so that no device has to be asked.
    """

    tokens: Int[Tensor, "b l"]
    is_free: Bool[Tensor, "b l"]
    is_real: Bool[Tensor, "b l"]
    has_padding: bool = False

    @classmethod
    def free(cls, tokens: Int[Tensor, "b l"]) -> "Canvas":
        """Every position exists and is free."""
        everywhere = torch.ones_like(tokens, dtype=torch.bool)
        return cls(tokens, everywhere, everywhere)

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

    def clamped(self, z: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """``z`` with the given tokens (and padding) put back."""
        return torch.where(self.is_free, z, self.tokens)

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
