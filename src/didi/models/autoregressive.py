"""The autoregressive baseline: GPT-2 of ``transformers`` over the same tokens as a masked-diffusion model. App. E.3."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from didi.errors import DidiError, UsageError, from_checkout

if TYPE_CHECKING:
    from transformers import DynamicCache

LOGITS_PER_PART = 2**26
"""Number of logits that exist at the same time while sequences are scored: 256 MiB in float32."""
Activation = Literal["gelu_new", "gelu", "gelu_pytorch_tanh", "relu", "silu", "tanh"]


@dataclass(frozen=True)
class AutoregressiveConfig:
    """Shape of a GPT-2.

    Attributes:
        vocab_size: number of symbols V, the mask included if there is one.
        mask_id: index of [MASK], which is not part of texts and never predicted; None for a network without it, such
            as the public GPT-2.
        length: context length L.
        hidden_size: width d.
        num_blocks: number of transformer blocks.
        num_heads: attention heads; a divisor of ``hidden_size``.
        dropout: dropout rate while in training mode.
        begin_id: index of the token that begins every sequence and may also occur in texts, such as the end-of-text
            token of the public GPT-2; None if [MASK] begins sequences.
        is_tied: whether head and token embedding share one matrix.
        inner_size: width of the MLP; None for four times ``hidden_size``.
        activation: activation of the MLP, as named in ``transformers``.
        layer_norm_epsilon: epsilon of layer normalisation.

    Raises:
        UsageError: the heads do not divide the width, or no symbol begins a sequence.
    """

    vocab_size: int
    mask_id: int | None
    length: int
    hidden_size: int = 768
    num_blocks: int = 12
    num_heads: int = 12
    dropout: float = 0.0
    begin_id: int | None = None
    is_tied: bool = False
    inner_size: int | None = None
    activation: Activation = "gelu_new"
    layer_norm_epsilon: float = 1e-5

    def __post_init__(self) -> None:
        if self.num_heads < 1 or self.hidden_size % self.num_heads:
            raise UsageError(f"hidden_size is a multiple of num_heads; got {self.hidden_size} and {self.num_heads}")
        begin = self.mask_id if self.begin_id is None else self.begin_id
        if begin is None or not 0 <= begin < self.vocab_size:
            raise UsageError(
                f"a sequence begins with begin_id, or else mask_id, one of {self.vocab_size} symbols; got "
                f"{self.begin_id} and {self.mask_id}"
            )


class AutoregressiveLM(nn.Module):
    """GPT-2 over the tokens of a masked-diffusion model, with an untied head as these have, or the public GPT-2.

    It models whole rows of the packed corpus: position 0 is predicted from a begin symbol, which is [MASK] or the
    end-of-text token.
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
                n_inner=config.inner_size,
                activation_function=config.activation,
                layer_norm_epsilon=config.layer_norm_epsilon,
                resid_pdrop=config.dropout,
                embd_pdrop=config.dropout,
                attn_pdrop=config.dropout,
                bos_token_id=self.begin_id,
                eos_token_id=self.begin_id,
                tie_word_embeddings=config.is_tied,
                attn_implementation="sdpa",
            )
        )
        if config.is_tied:
            del self.gpt2.lm_head  # ``head`` uses the embedding: one matrix, stored and trained once

    @property
    def vocab_size(self) -> int:
        """Number of symbols, the mask included if there is one."""
        return self.config.vocab_size

    @property
    def mask_id(self) -> int | None:
        """Index of [MASK]; None in a network without it."""
        return self.config.mask_id

    @property
    def begin_id(self) -> int:
        """Index of the symbol that begins every sequence."""
        begin = self.config.mask_id if self.config.begin_id is None else self.config.begin_id
        assert begin is not None
        return begin

    @property
    def length(self) -> int:
        """Context length L."""
        return self.config.length

    def forward(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l v"]:
        """Logits of the symbol after each of ``tokens``; [MASK] is never predicted."""
        return self.head(self.features(tokens))

    def features(self, tokens: Int[Tensor, "b l"], cache: "DynamicCache | None" = None) -> Float[Tensor, "b l d"]:
        """Output of the trunk at each of ``tokens``, ready for ``head``.

        Args:
            tokens: symbols that follow the symbols in ``cache``.
            cache: keys and values of the preceding symbols; those of ``tokens`` are appended to it.
        """
        outputs = self.gpt2.transformer(input_ids=tokens, past_key_values=cache, use_cache=cache is not None)
        features: Tensor = outputs.last_hidden_state
        return features

    def head(self, features: Float[Tensor, "*rows d"]) -> Float[Tensor, "*rows v"]:
        """Logits of the next symbol from any rows of features; [MASK] has -inf."""
        transformer = self.gpt2.transformer
        logits = F.linear(features, transformer.wte.weight) if self.config.is_tied else self.gpt2.lm_head(features)
        if self.mask_id is None:
            return logits
        is_mask = torch.arange(self.vocab_size, device=logits.device) == self.mask_id
        return logits.masked_fill(is_mask, -torch.inf)

    def inputs_of(self, tokens: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """Inputs of the network that predict ``tokens``: the begin symbol and all tokens but the last."""
        return torch.cat([torch.full_like(tokens[:, :1], self.begin_id), tokens[:, :-1]], dim=1)

    def nll(self, tokens: Int[Tensor, "b l"]) -> Float[Tensor, "b l"]:
        """Negative log-likelihood of each token in nats, exact."""
        return torch.cat(
            [
                F.cross_entropy(self.head(features).float().transpose(1, 2), part, reduction="none")
                for features, part in self._parts(tokens)
            ]
        )

    def likeliest(self, tokens: Int[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """The most probable symbol at each position, given the ``tokens`` before it."""
        return torch.cat([self.head(features).argmax(-1) for features, _ in self._parts(tokens)])

    def _parts(self, tokens: Int[Tensor, "b l"]) -> Iterator[tuple[Float[Tensor, "c l d"], Int[Tensor, "c l"]]]:
        """Features and the tokens that they predict, in parts of ``LOGITS_PER_PART``; one part with gradients."""
        features, size = self.features(self.inputs_of(tokens)), max(1, len(tokens))
        if not torch.is_grad_enabled():  # with gradients the logits of all parts are kept anyway
            size = max(1, LOGITS_PER_PART // (tokens.shape[1] * self.vocab_size))
        yield from zip(features.split(size), tokens.split(size), strict=True)
