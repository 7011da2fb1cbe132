"""Layers of the diffusion transformer, with the parameter names of the public MDLM layout."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

FREQUENCY_DIM = 256  # sinusoidal features of the noise level


class LayerNorm(nn.Module):
    """Layer normalisation without bias, computed in float32, under autocast too."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows d"]:
        """Normalise the last axis."""
        return F.layer_norm(x.float(), self.weight.shape, self.weight.float())


class Embedding(nn.Module):
    """Token embedding; for distributions over tokens it gives the expected embedding."""

    def __init__(self, vocab_size: int, dim: int) -> None:
        super().__init__()
        self.embedding = nn.Parameter(torch.empty(vocab_size, dim))
        nn.init.kaiming_uniform_(self.embedding, a=math.sqrt(5))

    def forward(self, inputs: Int[Tensor, "*b"] | Float[Tensor, "*b v"]) -> Float[Tensor, "*b d"]:
        """Embed token ids, or distributions over tokens (any floating-point input)."""
        if inputs.is_floating_point():
            expected: Tensor = inputs.to(self.embedding.dtype) @ self.embedding
            return expected.to(self.embedding.dtype)  # under autocast too, as the residual stream stays in this type
        return F.embedding(inputs, self.embedding)


class NoiseEmbedding(nn.Module):
    """Sinusoidal features of the noise level, or of another number, then a two-layer network.

    Args:
        cond_dim: width c of the embedding.
        is_zero: whether the initial embedding is zero for all numbers.
    """

    def __init__(self, cond_dim: int, *, is_zero: bool = False) -> None:
        super().__init__()
        make_last = zero_linear if is_zero else nn.Linear
        self.mlp = nn.Sequential(nn.Linear(FREQUENCY_DIM, cond_dim), nn.SiLU(), make_last(cond_dim, cond_dim))

    def forward(self, sigma: Float[Tensor, " b"]) -> Float[Tensor, "b c"]:
        """Embed noise levels."""
        half = FREQUENCY_DIM // 2
        frequencies = torch.exp(-math.log(10_000) * torch.arange(half, device=sigma.device) / half)
        angles = sigma.float()[:, None] * frequencies
        return self.mlp(torch.cat([angles.cos(), angles.sin()], dim=-1))


class Rotary(nn.Module):
    """Rotary position embedding on sequential (not interleaved) halves (Su et al. 2024)."""

    inv_freq: Tensor

    def __init__(self, head_dim: int) -> None:
        super().__init__()
        # On the meta device, torch.arange imports torch._dynamo and sympy, which takes a second.
        frequencies = 10_000 ** (-torch.arange(0, head_dim, 2, device="cpu") / head_dim)
        self.register_buffer("inv_freq", frequencies.to(torch.get_default_device()))

    def forward(self, length: int) -> tuple[Float[Tensor, "l e"], Float[Tensor, "l e"]]:
        """Cosines and sines of every position, each half repeated once; the first half of the sines is negated."""
        angles = torch.outer(torch.arange(length, device=self.inv_freq.device), self.inv_freq)
        return angles.cos().repeat(1, 2), torch.cat([-angles.sin(), angles.sin()], dim=-1)


def rotate(x: Float[Tensor, "*b l e"], cos: Float[Tensor, "l e"], sin: Float[Tensor, "l e"]) -> Tensor:
    """``x`` rotated by the tables of ``Rotary``."""
    first, second = x.chunk(2, dim=-1)
    return torch.addcmul(x * cos, torch.cat([second, first], dim=-1), sin)


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """``x`` scaled by ``1 + scale`` and shifted."""
    return torch.addcmul(shift, x, 1 + scale)


class LocalConv(nn.Module):
    """Residual depthwise convolution over positions ("Canon layer", Allen-Zhu 2025), initially the identity.

    A small network needs many steps to learn attention to neighbours; the convolution reads them from the start.
    """

    def __init__(self, dim: int, radius: int) -> None:
        super().__init__()
        self.radius = radius
        self.weight = nn.Parameter(torch.zeros(2 * radius + 1, dim))

    def forward(self, x: Float[Tensor, "b l d"]) -> Float[Tensor, "b l d"]:
        """Add its weighted neighbours to each position; neighbours beyond the ends are zero."""
        length, padded, mixed = x.shape[1], F.pad(x, (0, 0, self.radius, self.radius)), x
        for offset, weight in enumerate(self.weight):
            mixed = torch.addcmul(mixed, padded[:, offset : offset + length], weight)
        return mixed


def zero_linear(num_in: int, num_out: int) -> nn.Linear:
    """A linear layer whose weights and bias are zero."""
    linear = nn.Linear(num_in, num_out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear
