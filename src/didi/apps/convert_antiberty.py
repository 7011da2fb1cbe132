"""``didi convert antiberty``: a bundle of AntiBERTy, a masked language model of antibodies."""

from typing import Any, Literal

from didi.apps.convert_parts import check_vocabulary
from didi.data.assets import fetch
from didi.data.protein import protein_tokenizer
from didi.diffusion.absorbing import Absorbing
from didi.errors import UsageError
from didi.models.bert_layout import VOCABULARY, antiberty_from_state_dict
from didi.models.bundle import Bundle
from didi.models.foreign import read_checkpoint

ANTIBERTY = "antiberty"
"""Name of the layout, and of the pinned asset."""
UNREAD = {
    "weights": "the layout holds one set of weights",
    "tied": "its head is tied",
    "num_heads": "config.json has it",
    "length": "its positions are learned, and their number is that of the weights",
    "tokenizer": "its symbols are residues",
    "discriminator": "the layout has none",
    "block_layout": "each row is one protein",
    "nfe": "a teacher has no intended number of moves",
}
"""Flags of other layouts that this one does not read, with the reasons."""


def antiberty_bundle(
    source: str, *, revision: str | None = None, role: Literal["teacher", "student"] = "teacher"
) -> Bundle:
    """Make a bundle from the checkpoint.

    Args:
        source: ``antiberty`` for the pinned asset, or a file, a folder or a Hub repository in its layout.
        revision: Revision of a Hub repository.
        role: Role of the network in the bundle.

    Raises:
        UsageError: The checkpoint does not have that layout.
        DidiError: The asset cannot be fetched, or the Hub could not be reached.
    """
    file = str(fetch(ANTIBERTY) / "AntiBERTy_md_smooth") if source == ANTIBERTY else source
    checkpoint = read_checkpoint(file, revision=revision)
    if checkpoint.shadow is not None or checkpoint.average:
        raise UsageError(f"a checkpoint of AntiBERTy holds one set of weights; {source} has an average beside it")
    network = antiberty_from_state_dict(checkpoint.weights, checkpoint.settings)
    # The pinned archive has vocab.txt in the outer folder; that of another source may belong to something else.
    folder = checkpoint.folder.parent if source == ANTIBERTY else checkpoint.folder
    check_vocabulary(folder / "vocab.txt", VOCABULARY, name="AntiBERTy")
    networks: dict[str, Any] = {role: network}
    return Bundle(
        **networks,
        tokenizer=protein_tokenizer(),
        process=Absorbing(network.mask_id),
        provenance={"source": source, "layout": ANTIBERTY, "weights": "raw"}
        | ({"revision": revision} if revision else {}),
    )
