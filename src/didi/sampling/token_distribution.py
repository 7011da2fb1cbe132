"""The distribution that tokens are drawn from: temperature and nucleus (top-p) truncation of the network's."""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float, Int
from torch import Tensor

from didi.arguments import finite_number, set_fields
from didi.diffusion.absorbing import token_log_probs
from didi.diffusion.categorical import sample_categorical
from didi.sampling.draw_check import DrawCheck

TEMPERATURES = (1e-30, 1e30)
"""Range of the divisor of the logits, which overflow in float32 beyond it."""


@dataclass(frozen=True)
class TokenDistribution:
    """Temperature and top-p; the default is the distribution of the network.

    Attributes:
        temperature: divisor of the logits, in [0, 1e30]; 1 changes nothing. Values below 1e-30, such as 0, become
            1e-30, which takes the most likely tokens.
        top_p: the most probable tokens whose probabilities reach this sum are kept (Holtzman et al. 2020,
            https://arxiv.org/abs/1904.09751); 1 changes nothing.
        draw_check: checks all logits that tokens are drawn from.

    Raises:
        UsageError: the temperature is not in [0, 1e30], or top_p not in (0, 1].
    """

    temperature: float = 1.0
    top_p: float = 1.0
    draw_check: DrawCheck = field(default_factory=DrawCheck, repr=False, compare=False)

    def __post_init__(self) -> None:
        low, high = TEMPERATURES
        set_fields(
            self,
            temperature=max(low, finite_number("temperature", self.temperature, low=0, high=high)),
            top_p=finite_number("top_p", self.top_p, low=0, high=1, is_low_open=True),
        )

    def sample(
        self, logits: Float[Tensor, "n v"], mask_id: int | None, uniforms: Float[Tensor, "n *k"]
    ) -> Int[Tensor, "n *k"]:
        """Draws from the distribution of each row, see ``sample_categorical``; [MASK] is never drawn.

        Raises:
            DidiError: logits are not finite; on a CUDA device ``draw_check.finish`` raises it.
        """
        if self.top_p < 1:
            return sample_categorical(self.log_probs(logits, mask_id), uniforms)
        scores = logits.clone() if self.temperature == 1 else logits / self.temperature  # sample_categorical normalises
        if mask_id is not None:
            scores.select(-1, mask_id).fill_(-torch.inf)
        self.draw_check.check(scores)
        return sample_categorical(scores, uniforms)

    def log_probs(self, logits: Float[Tensor, "n v"], mask_id: int | None) -> Float[Tensor, "n v"]:
        """Normalised log-probabilities of the token in each row, float32; [MASK] has probability 0.

        Raises:
            DidiError: logits are not finite; on a CUDA device ``draw_check.finish`` raises it.
        """
        log_probs = token_log_probs(logits if self.temperature == 1 else logits / self.temperature, mask_id)
        self.draw_check.check(log_probs)
        if self.top_p == 1:
            return log_probs
        ordered, order = log_probs.sort(dim=-1, descending=True)
        probs = ordered.double().exp()
        is_cut = probs.cumsum(-1) - probs >= self.top_p  # the sum of all more probable tokens has reached top_p
        kept = log_probs.masked_fill(torch.zeros_like(is_cut).scatter(-1, order, is_cut), -torch.inf)
        return kept.log_softmax(-1)


UNMODIFIED = TokenDistribution()
"""The distribution of the network."""
