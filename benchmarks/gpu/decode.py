"""Left-to-right decoding with a static key-value cache in CUDA graphs: a fast autoregressive baseline.

The network is the GPT-2 of ``didi.models.autoregressive``, with one token a pass, weights and cache in one dtype, and
float64 draws. There is one graph, of fixed shapes, for each of a few cache lengths, so that a pass does not attend to
the whole empty cache.
"""

from collections.abc import Callable
from typing import Any, cast

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from didi.diffusion.categorical import sample_categorical
from didi.models.autoregressive import AutoregressiveLM

NUM_BUCKETS = 4
WARM_UP_STEPS = 3


class StaticDecoder:
    """Decoder of whole sequences of a batch; on a CUDA device each bucket of lengths is one graph.

    Args:
        model: the network; its weights are copied in ``dtype``.
        batch_size: number b of sequences.
        dtype: dtype of weights, activations and cache.
    """

    def __init__(self, model: AutoregressiveLM, batch_size: int, dtype: torch.dtype) -> None:
        self._weights = {name: value.detach().to(dtype) for name, value in model.gpt2.named_parameters()}
        self._config, self.length, gpt2 = model.config, model.length, cast(Any, model.gpt2)
        self._epsilon = gpt2.config.layer_norm_epsilon
        self.device = next(model.parameters()).device
        heads = (batch_size, model.config.num_heads, self.length, model.config.hidden_size // model.config.num_heads)
        shape = (model.config.num_blocks, 2, *heads)
        self._cache = torch.zeros(shape, dtype=dtype, device=self.device)
        self._position = torch.zeros(1, dtype=torch.long, device=self.device)
        self._token = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        self._tokens = torch.zeros(batch_size, self.length, dtype=torch.long, device=self.device)
        self._uniforms = torch.zeros(batch_size, self.length, dtype=torch.float64, device=self.device)
        self._is_mask = torch.arange(model.vocab_size, device=self.device) == model.mask_id
        self._steps = self._captured()

    @torch.inference_mode()
    def __call__(self, uniforms: Float[Tensor, "b l"]) -> Int[Tensor, "b l"]:
        """Draw a batch, with one uniform random number for each token."""
        self._uniforms.copy_(uniforms)
        self._token.fill_(self._config.mask_id)
        self._position.zero_()
        bucket = self.length // len(self._steps)
        for number in range(self.length):
            self._steps[number // bucket]()
        return self._tokens.clone()

    @torch.inference_mode()
    def _captured(self) -> list[Callable[[], None]]:
        """The step for each bucket of positions."""
        num = NUM_BUCKETS if self.length % NUM_BUCKETS == 0 else 1
        sizes = [self.length * (number + 1) // num for number in range(num)]
        if self.device.type != "cuda":
            return [lambda size=size: self._step(size) for size in sizes]  # type: ignore[misc]
        steps: list[Callable[[], None]] = []
        for size in sizes:
            stream = torch.cuda.Stream()
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                for _ in range(WARM_UP_STEPS):
                    self._position.zero_()
                    self._step(size)
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            self._position.zero_()
            with torch.cuda.graph(graph):
                self._step(size)
            steps.append(graph.replay)
        return steps

    def _step(self, size: int) -> None:
        """Process the latest token, draw the next and advance the position; the cache is read up to ``size``."""
        weight = self._weights
        x = weight["transformer.wte.weight"][self._token] + weight["transformer.wpe.weight"][self._position]
        is_past = (torch.arange(size, device=self.device) <= self._position)[None, None, None]
        for number in range(self._config.num_blocks):
            x = self._block(x, number, size, is_past)
        x = self._norm(x, "transformer.ln_f")
        logits = F.linear(x, weight["lm_head.weight"]).masked_fill(self._is_mask, -torch.inf)
        drawn = sample_categorical(logits, self._uniforms.index_select(1, self._position).squeeze(1))
        self._tokens.index_copy_(1, self._position, drawn[:, None])
        self._token.copy_(drawn)
        self._position += 1

    def _block(self, x: Tensor, number: int, size: int, is_past: Tensor) -> Tensor:
        name, heads, cache = f"transformer.h.{number}", self._config.num_heads, self._cache[number]
        qkv = self._linear(self._norm(x, f"{name}.ln_1"), f"{name}.attn.c_attn")
        query, key, value = (part.unflatten(-1, (heads, 1, -1)) for part in qkv.chunk(3, dim=-1))
        for place, new in enumerate((key, value)):
            cache[place].index_copy_(2, self._position, new)
        attended = F.scaled_dot_product_attention(query, cache[0, :, :, :size], cache[1, :, :, :size], is_past)
        x = x + self._linear(attended.flatten(1), f"{name}.attn.c_proj")
        hidden = F.gelu(self._linear(self._norm(x, f"{name}.ln_2"), f"{name}.mlp.c_fc"), approximate="tanh")
        return x + self._linear(hidden, f"{name}.mlp.c_proj")

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return torch.addmm(self._weights[f"{name}.bias"], x, self._weights[f"{name}.weight"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, self._epsilon)
