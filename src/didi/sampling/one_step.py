"""One-step sampling: all tokens from one pass at a random initial state (Di[M]O, https://arxiv.org/abs/2503.15457)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import cast

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.models.denoiser import Denoiser
from didi.models.initial_state import MASKS, InitialState
from didi.models.networks import DenoiserNetwork
from didi.sampling.base import StepOutput
from didi.sampling.token_distribution import UNMODIFIED, TokenDistribution


@dataclass(frozen=True)
class OneStep:
    """One-step sampler; float64 draws of the tokens.

    The initial state has the given tokens at their positions, without noise.

    Attributes:
        denoiser: the network.
        process: masked diffusion.
        token_distribution: temperature and top-p.
        initial_state: distribution of the network's input. The default, masks only, gives ``Ancestral`` with one move.
    """

    denoiser: Denoiser
    process: Absorbing
    token_distribution: TokenDistribution = UNMODIFIED
    initial_state: InitialState = MASKS

    @property
    def network(self) -> DenoiserNetwork:
        """The denoiser as a network that can read embeddings."""
        return cast(DenoiserNetwork, self.denoiser)

    @torch.inference_mode()
    def __call__(self, canvas: Canvas, times: Float[Tensor, " n"], noise: SequenceNoise) -> Iterator[StepOutput]:
        """See ``base.Sampler``; there is one move, from the first to the last time."""
        mask_id, is_free = self.process.mask_id, canvas.is_free
        state_draws, token_draws = noise.uniforms(canvas.length, 3, positions=0).split([2, 1], dim=-1)
        normals = None
        if self.initial_state.noise_std:
            normals = noise.normals(canvas.length, self.network.hidden_size, positions=0)
        z = self.initial_state.tokens(canvas, state_draws, mask_id, self.denoiser.vocab_size)
        logits = self.denoiser.head(self.features(z, canvas, normals)[is_free])
        drawn = self.token_distribution.sample(logits, mask_id, token_draws[..., 0][is_free])
        no_passes = torch.zeros(len(z), dtype=torch.long)
        passes = is_free.any(1).long().cpu()
        yield StepOutput(z.masked_scatter(is_free, drawn), float(times[-1]), is_free, passes, no_passes)

    def features(
        self, z: Int[Tensor, "b l"], canvas: Canvas, normals: Float[Tensor, "b l d"] | None
    ) -> Float[Tensor, "b l d"]:
        """Trunk features of initial states, at time 1.

        Args:
            z: tokens of the initial states, from ``InitialState.tokens``.
            canvas: free positions.
            normals: noise of the embeddings; None for no noise.
        """
        sigma = self.process.noise_level(self.denoiser, torch.ones(len(z), dtype=torch.float64, device=z.device))
        return self.initial_state.features(self.network, z, canvas.is_free, normals, sigma, canvas.attention_mask)
