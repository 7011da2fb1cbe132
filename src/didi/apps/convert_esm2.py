"""``didi convert esm2`` and ``didi convert dplm``: bundles of protein language models of ``transformers``."""

from typing import Any, Literal

from didi.apps.convert_parts import check_vocabulary
from didi.data.protein import protein_tokenizer
from didi.diffusion.absorbing import Absorbing
from didi.diffusion.schedule import schedule_from_name
from didi.errors import UsageError
from didi.models.bundle import Bundle
from didi.models.esm2_layout import esm2_from_state_dict
from didi.models.foreign import read_checkpoint
from didi.models.proteins import ALPHABET

SCHEDULES = {"esm2": "log-linear", "dplm": "log-linear-500"}
"""Noise schedule of each layout; ESM-2 is a masked language model without a schedule, so this is a choice."""
UNREAD = {
    "weights": "the layout holds one set of weights",
    "tied": "config.json and the weights determine it",
    "tokenizer": "its vocabulary is that of ESM-2",
    "discriminator": "the layout has none",
    "block_layout": "each row is one protein",
    "nfe": "a teacher has no intended number of moves",
}
"""Flags of other layouts that these do not read, with the reasons."""


def esm2_bundle(
    layout: str,
    source: str,
    *,
    revision: str | None = None,
    role: Literal["teacher", "student"] = "teacher",
    num_heads: int | None = None,
    length: int | None = None,
) -> Bundle:
    """Make a bundle from a checkpoint.

    Args:
        layout: ``esm2`` or ``dplm``.
        source: A file, a folder or a Hub repository, such as ``facebook/esm2_t30_150M_UR50D``.
        revision: Revision of a Hub repository.
        role: Role of the network in the bundle.
        num_heads: Number of attention heads, instead of that in ``config.json``.
        length: Context length in positions, instead of that in ``config.json``.

    Raises:
        UsageError: The checkpoint does not have that layout.
        DidiError: The Hub could not be reached.
    """
    checkpoint = read_checkpoint(source, revision=revision)
    if checkpoint.shadow is not None or checkpoint.average:
        raise UsageError(f"an ESM-2 checkpoint holds one set of weights; {source} has an average beside it")
    network = esm2_from_state_dict(checkpoint.weights, checkpoint.settings, num_heads=num_heads, length=length)
    check_vocabulary(checkpoint.folder / "vocab.txt", ALPHABET, name="ESM-2")
    networks: dict[str, Any] = {role: network}
    return Bundle(
        **networks,
        tokenizer=protein_tokenizer(),
        process=Absorbing(network.mask_id, schedule_from_name(SCHEDULES[layout])),
        provenance={"source": source, "layout": layout, "weights": "raw"}
        | ({"revision": revision} if revision else {}),
    )
