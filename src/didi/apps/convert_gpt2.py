"""``didi convert gpt2``: GPT-2 of ``transformers`` into a bundle with the role ``autoregressive``."""

from didi.apps.convert_parts import tokenizer_of
from didi.data.blocks import BLOCK_LAYOUT, BlockLayout, checked
from didi.models.bundle import Bundle
from didi.models.gpt2_layout import gpt2_from_state_dict, read_gpt2

UNREAD = {
    "role": "the network has the role autoregressive",
    "weights": "the layout holds one set of weights",
    "length": "its positions are learned, and their number is that of the weights",
    "discriminator": "the layout has none",
    "nfe": "one pass writes one token",
}
"""Why flags that other layouts read are not read."""


def gpt2_bundle(
    source: str,
    *,
    revision: str | None = None,
    num_heads: int | None = None,
    is_tied: bool = False,
    tokenizer: str | None = None,
    block_layout: BlockLayout | None = None,
) -> Bundle:
    """The bundle of a checkpoint.

    Args:
        source: As for ``read_gpt2``.
        revision: Of a Hub repository.
        num_heads: Attention heads, instead of those in ``config.json``.
        is_tied: The head is the embedding, whatever ``config.json`` says.
        tokenizer: As for ``tokenizer_of``.
        block_layout: Of the rows that the network was trained on; by default that of ``config.json`` or ``stream``.

    Raises:
        UsageError: The checkpoint is not of that layout.
        DidiError: The Hub could not be reached.
    """
    found = read_gpt2(source, revision=revision)
    network = gpt2_from_state_dict(found.weights, found.settings, num_heads=num_heads, is_tied=is_tied)
    blocks = checked(block_layout or found.settings.get(BLOCK_LAYOUT, "stream"))
    bundle = Bundle(
        autoregressive=network,
        provenance={"source": source, "layout": "gpt2", "weights": "raw", BLOCK_LAYOUT: blocks}
        | ({"revision": revision} if revision else {}),
    )
    bundle.tokenizer = tokenizer_of(tokenizer, found, bundle)
    return bundle
