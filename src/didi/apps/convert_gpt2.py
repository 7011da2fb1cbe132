"""``didi convert gpt2``: a bundle of GPT-2 of ``transformers``, with the role ``autoregressive``."""

from didi.apps.convert_parts import tokenizer_of
from didi.data.blocks import BLOCK_LAYOUT, BlockLayout, checked_layout
from didi.models.bundle import Bundle
from didi.models.gpt2_layout import gpt2_from_state_dict, read_gpt2

GPT2 = "gpt2"
"""Name of the layout."""
UNREAD = {
    "role": "the network has the role autoregressive",
    "weights": "the layout holds one set of weights",
    "length": "its positions are learned, and their number is that of the weights",
    "discriminator": "the layout has none",
    "nfe": "an autoregressive network generates one token in each pass",
}
"""Flags of other layouts that this one does not read, with the reasons."""


def gpt2_bundle(
    source: str,
    *,
    revision: str | None = None,
    num_heads: int | None = None,
    is_tied: bool = False,
    tokenizer: str | None = None,
    block_layout: BlockLayout | None = None,
) -> Bundle:
    """Make a bundle from a checkpoint.

    Args:
        source: See ``read_gpt2``.
        revision: Revision of a Hub repository.
        num_heads: Number of attention heads, instead of that in ``config.json``.
        is_tied: Whether the head shares the matrix of the embedding even if ``config.json`` does not set it.
        tokenizer: See ``tokenizer_of``.
        block_layout: Layout of the rows that the network was trained on; by default that of ``config.json``, or
            ``stream``.

    Raises:
        UsageError: The checkpoint does not have that layout.
        DidiError: The Hub could not be reached.
    """
    checkpoint = read_gpt2(source, revision=revision)
    network = gpt2_from_state_dict(checkpoint.weights, checkpoint.settings, num_heads=num_heads, is_tied=is_tied)
    blocks = checked_layout(block_layout or checkpoint.settings.get(BLOCK_LAYOUT, "stream"))
    bundle = Bundle(
        autoregressive=network,
        provenance={"source": source, "layout": "gpt2", "weights": "raw", BLOCK_LAYOUT: blocks}
        | ({"revision": revision} if revision else {}),
    )
    bundle.tokenizer = tokenizer_of(tokenizer, checkpoint, bundle)
    return bundle
