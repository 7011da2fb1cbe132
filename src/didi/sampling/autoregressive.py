"""Left-to-right sampling of the autoregressive baseline with a key-value cache: one token a pass."""

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
    """Sampler of an autoregressive network; float64 draws, one uniform a token.

    Attributes:
        network: the network.
        token_distribution: temperature and top-p.
        unwritten_id: what stands at positions that are not written yet, [MASK] of the bundle; no network reads it.
    """

    network: AutoregressiveLM
    token_distribution: TokenDistribution = UNMODIFIED
    unwritten_id: int = 0

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; there is one move for each position from the first masked one on, whatever the times.

        Raises:
            UsageError: visible tokens stand after masked ones.
        """
        from transformers import DynamicCache

        del times
        is_masked = canvas.is_free
        z = canvas.tokens.masked_fill(is_masked, self.unwritten_id)
        if (is_masked[:, :-1] & ~is_masked[:, 1:] & canvas.is_real[:, 1:]).any():
            raise UsageError("an autoregressive model goes on from a prefix; it cannot infill: use --prefix")
        length, num_given = z.shape[1], (canvas.is_real & ~is_masked).sum(1)
        num_visible = int(num_given.min())
        cache = DynamicCache()
        uniforms, none = noise.uniforms(length - num_visible), torch.zeros(len(z), dtype=torch.long)
        unread = self.network.inputs_of(z[:, : num_visible + 1])
        for position in range(num_visible, length):
            logits = self.network.head(self.network.features(unread, cache)[:, -1])
            # Each sequence draws the uniforms of its own stream in their order, wherever its prefix ends.
            which = (position - num_given).clamp(min=0)[:, None]
            drawn = self.token_distribution.sample(logits, self.network.mask_id, uniforms.gather(1, which)[:, 0])
            changed = torch.zeros_like(is_masked)
            changed[:, position] = is_masked[:, position]
            z = z.clone()
            z[:, position] = torch.where(is_masked[:, position], drawn, z[:, position])
            unread = z[:, position, None]
            yield StepOutput(z, 1 - (position + 1) / length, changed, changed.any(1).long().cpu(), none)
