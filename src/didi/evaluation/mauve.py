"""MAUVE: how far the distribution of samples is from that of real text, in the space of an embedding.

Source: https://arxiv.org/abs/2102.01454; the divergence is computed by the authors' own package ``mauve-text``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.data.assets import fetch
from didi.errors import DidiError, from_checkout
from didi.evaluation.perplexity import transformers_for

EMBEDDER = "embedder"
MAUVE_SEED = 25  # of its clustering, the package's own default


@dataclass(frozen=True)
class Embedding:
    """Where texts are points.

    Attributes:
        name: of the network that embeds.
        features: of texts, a row for each.
    """

    name: str
    features: Callable[[Sequence[str]], Float[Tensor, "n d"]]

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Features of texts."""
        return self.features(texts)


def load_embedding(name: str = EMBEDDER, *, device: str | torch.device = "cpu") -> Embedding:
    """The embedding of a network of transformers.

    Args:
        name: ``embedder`` (all-MiniLM-L6-v2, from a package registry), or any model of transformers by folder or Hub
            name, such as ``gpt2-large``, which the paper uses.
        device: where it runs.

    Returns:
        The mean of the last hidden states over tokens, or the last token's of a causal model, as features.

    Raises:
        UsageError: there is no such model.
        DidiError: transformers is not installed, or the model cannot be read or reached.
    """
    with transformers_for("embedding", name, known=[EMBEDDER]) as transformers:
        source = fetch(EMBEDDER) if name == EMBEDDER else name
        model = transformers.AutoModel.from_pretrained(source).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    is_causal = tokenizer.mask_token is None
    limit = getattr(model.config, "max_position_embeddings", None)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Float[Tensor, "n d"]:
        features = []
        for text in texts:  # one by one: nothing to pad, and the same features whatever stands beside a text
            ids = tokenizer(text or " ", truncation=limit is not None, max_length=limit, return_tensors="pt")[
                "input_ids"
            ]
            states = model(input_ids=ids.to(device)).last_hidden_state[0].float()
            features.append(states[-1] if is_causal else states.mean(0))
        return torch.stack(features).cpu()

    return Embedding(name, embed)


def mauve(samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"]) -> float:
    """MAUVE of samples against real text, in (0, 1]; 1 where they cannot be distinguished.

    It depends on the embedding and on the number of texts (a few hundred lean high and vary), so compare only figures
    of one embedding and one size, and read them beside that of real text against real text.

    Args:
        samples: features of the samples.
        reference: features of real texts, about as many.

    Raises:
        DidiError: the package ``mauve-text`` is not installed.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise DidiError(f"MAUVE needs the package mauve-text: {from_checkout('mauve')} ({error})") from error
    found = compute_mauve(p_features=samples.numpy(), q_features=reference.numpy(), verbose=False, seed=MAUVE_SEED)
    return float(found.mauve)
