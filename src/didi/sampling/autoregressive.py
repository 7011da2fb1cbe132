"""Left-to-right sampling of the autoregressive baseline with a key-value cache: one token per pass."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.sampling.base import StepOutput
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution


@dataclass(frozen=True)
class LeftToRight:
    """Sampler of an autoregressive network; float64 draws, one uniform number per token.

    Attributes:
        network: the network.
        token_distribution: temperature and top-p.
        unwritten_id: token at positions that are not sampled yet, [MASK] of the bundle; the network never reads it.
    """

    network: AutoregressiveLM
    token_distribution: TokenDistribution = UNMODIFIED
    unwritten_id: int = 0

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; one move for each position from the first free one on. ``times`` are ignored.

        Raises:
            UsageError: a given token stands after a free position.
        """
        from transformers import DynamicCache

        del times
        is_free = canvas.is_free
        z = canvas.tokens.masked_fill(is_free, self.unwritten_id)
        if (is_free[:, :-1] & ~is_free[:, 1:] & canvas.is_real[:, 1:]).any():
            raise UsageError("an autoregressive model continues a prefix and cannot infill: give a prefix instead")
        length, num_given = z.shape[1], (canvas.is_real & ~is_free).sum(1)
        num_visible = int(num_given.min())
        cache = DynamicCache()
        uniforms, no_passes = noise.uniforms(length - num_visible), torch.zeros(len(z), dtype=torch.long)
        next_inputs = self.network.inputs_of(z[:, : num_visible + 1])
        for position in range(num_visible, length):
            logits = self.network.head(self.network.features(next_inputs, cache)[:, -1])
            # The k-th sampled token of a sequence takes the k-th uniform of its stream, wherever its prefix ends.
            number = (position - num_given).clamp(min=0)[:, None]
            drawn = self.token_distribution.sample(logits, self.network.mask_id, uniforms.gather(1, number)[:, 0])
            changed = torch.zeros_like(is_free)
            changed[:, position] = is_free[:, position]
            z = z.clone()
            z[:, position] = torch.where(is_free[:, position], drawn, z[:, position])
            next_inputs = z[:, position, None]
            yield StepOutput(z, 1 - (position + 1) / length, changed, changed.any(1).long().cpu(), no_passes)
