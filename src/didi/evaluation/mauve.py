"""MAUVE: divergence of the distribution of samples from that of real text, in the space of an embedding.

Source: https://arxiv.org/abs/2102.01454; the divergence is computed by the authors' package ``mauve-text``.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from didi.data.assets import fetch
from didi.errors import DidiError, from_checkout
from didi.evaluation.perplexity import transformers_for

EMBEDDER = "embedder"
MISSING = f"MAUVE needs the package mauve-text: {from_checkout('mauve')}"
MAUVE_SEED = 25  # random seed of the clustering; the default of the package


@dataclass(frozen=True)
class Embedding:
    """An embedding of texts.

    Attributes:
        name: name of the network.
        features: function from texts to features, one row per text.
    """

    name: str
    features: Callable[[Sequence[str]], Float[Tensor, "n d"]]

    def __call__(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Features of texts, one row per text."""
        return self.features(texts)


def load_embedding(name: str = EMBEDDER, *, device: str | torch.device = "cpu") -> Embedding:
    """Load a model of transformers as an embedding.

    Args:
        name: ``embedder`` (all-MiniLM-L6-v2, from a package registry), or any model of transformers by folder or Hub
            name, such as ``gpt2-large``, which the paper uses.
        device: device of the network.

    Returns:
        An embedding whose features are the mean of the last hidden states over tokens; for a causal model, the last
        hidden state of the last token.

    Raises:
        UsageError: there is no such model.
        DidiError: mauve-text or transformers is not installed, or the model cannot be read or reached.
    """
    if importlib.util.find_spec("mauve") is None:  # here, so that no samples are drawn first
        raise DidiError(MISSING)
    with transformers_for("embedding", name, known=[EMBEDDER]) as transformers:
        source = fetch(EMBEDDER) if name == EMBEDDER else name
        model = transformers.AutoModel.from_pretrained(source).to(device).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(source)
    is_causal = tokenizer.mask_token is None
    limit = getattr(model.config, "max_position_embeddings", None)

    @torch.inference_mode()
    def embed(texts: Sequence[str]) -> Float[Tensor, "n d"]:
        features = []
        for text in texts:  # one text at a time: no padding, and features that do not depend on the other texts
            ids = tokenizer(text or " ", truncation=limit is not None, max_length=limit, return_tensors="pt")[
                "input_ids"
            ]
            states = model(input_ids=ids.to(device)).last_hidden_state[0].float()
            features.append(states[-1] if is_causal else states.mean(0))
        return torch.stack(features).cpu()

    return Embedding(name, embed)


def mauve(samples: Float[Tensor, "n d"], reference: Float[Tensor, "m d"]) -> float:
    """MAUVE of samples against real text, in (0, 1]; 1 for equal distributions.

    It depends on the embedding and on the number of texts (with a few hundred it is too high, and noisy), so compare
    only values of one embedding and one number of texts, and report the value of real text against other real text.

    Args:
        samples: features of the samples.
        reference: features of about as many real texts.

    Raises:
        DidiError: the package ``mauve-text`` is not installed.
    """
    try:
        from mauve import compute_mauve
    except ImportError as error:
        raise DidiError(f"{MISSING} ({error})") from error
    result = compute_mauve(p_features=samples.numpy(), q_features=reference.numpy(), verbose=False, seed=MAUVE_SEED)
    return float(result.mauve)
