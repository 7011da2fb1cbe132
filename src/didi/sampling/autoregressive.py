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
from didi.sampling.departure import EXACT, Departure


@dataclass(frozen=True)
class LeftToRight:
    """Sampler of an autoregressive network; float64 draws, one uniform a token.

    Attributes:
        network: the network.
        departure: temperature and top-p.
    """

    network: AutoregressiveLM
    departure: Departure = EXACT

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; there is one move for each masked position, whatever the times.

        Raises:
            UsageError: visible tokens stand after masked ones.
        """
        from transformers import DynamicCache

        del times
        z, is_masked = canvas.tokens, canvas.is_free
        num_visible = int((~is_masked[0]).sum())
        if is_masked[:, :num_visible].any() or not is_masked[:, num_visible:].all():
            raise UsageError("an autoregressive model goes on from a prefix; it cannot infill: use --prefix")
        length = z.shape[1]
        cache = DynamicCache()
        uniforms = noise.uniforms(length - num_visible)
        passes, none = torch.ones(len(z), dtype=torch.long), torch.zeros(len(z), dtype=torch.long)
        unread = torch.cat([torch.full_like(z[:, :1], self.network.mask_id), z[:, :num_visible]], dim=1)
        for position in range(num_visible, length):
            logits = self.network.next_logits(unread, cache)[:, -1]
            drawn = self.departure.sample(logits, self.network.mask_id, uniforms[:, position - num_visible])
            unread = drawn[:, None]
            changed = torch.zeros_like(is_masked)
            changed[:, position] = True
            z = z.clone()
            z[:, position] = unread[:, 0]
            yield StepOutput(z, 1 - (position + 1) / length, changed, passes, none)
