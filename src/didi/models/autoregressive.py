"""The autoregressive baseline: GPT-2 of ``transformers`` over the same tokens as a masked-diffusion model. App. E.3."""

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from didi.errors import DidiError, UsageError, from_checkout

if TYPE_CHECKING:
    from transformers import DynamicCache


@dataclass(frozen=True)
class AutoregressiveConfig:
    """Shape of a GPT-2.

    Attributes:
        vocab_size: number of symbols V, the mask included.
        mask_id: index of [MASK], which no text holds; here it begins every sequence.
        length: context length L.
        hidden_size: width d.
        num_blocks: number of transformer blocks.
        num_heads: attention heads; a divisor of ``hidden_size``.
        dropout: dropout rate while in training mode.
    """

    vocab_size: int
    mask_id: int
    length: int
    hidden_size: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise UsageError(f"hidden_size is a multiple of num_heads; got {self.hidden_size} and {self.num_heads}")


class AutoregressiveLM(nn.Module):
    """GPT-2 whose head is not tied to its embedding, like that of the masked-diffusion models beside it.

    It models whole rows of the packed corpus: position 0 is predicted from a begin symbol, for which [MASK] serves.
    """

    def __init__(self, config: AutoregressiveConfig) -> None:
        try:
            from transformers import GPT2Config, GPT2LMHeadModel
        except ImportError as error:
            raise DidiError(f"an autoregressive model needs transformers: {from_checkout('eval')} ({error})") from error

        super().__init__()
        self.config = config
        self.gpt2 = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=config.vocab_size,
                n_positions=config.length,
                n_embd=config.hidden_size,
                n_layer=config.num_blocks,
                n_head=config.num_heads,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=config.mask_id,
                eos_token_id=config.mask_id,
                tie_word_embeddings=False,
                attn_implementation="sdpa",
            )
        )

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included."""
        return self.config.vocab_size

    @property
    def mask_id(self) -> int:
        """Index of [MASK], the begin symbol."""
        return self.config.mask_id

    @property
    def length(self) -> int:
        """Context length L."""
        return self.config.length

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
        """Logits of the symbol after each of ``tokens``; [MASK] is never predicted."""
        return self.next_logits(tokens, None)

    def next_logits(self, tokens: Int[Tensor, "b l"], cache: "DynamicCache | None") -> Float[Tensor, "b l v"]:
        """As ``forward``, after the tokens that ``cache`` holds; it takes these in as well."""
        logits = self.gpt2(input_ids=tokens, past_key_values=cache, use_cache=cache is not None).logits
        is_mask = torch.arange(self.vocab_size, device=logits.device) == self.mask_id
        return logits.masked_fill(is_mask, -torch.inf)

    def nll(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Negative log-likelihood of each token in nats, exact."""
        begin = torch.full_like(tokens[:, :1], self.mask_id)
        logits = self(torch.cat([begin, tokens[:, :-1]], dim=1)).float()
        return F.cross_entropy(logits.transpose(1, 2), tokens, reduction="none")
