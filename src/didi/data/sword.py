"""A reader of commentaries in the SWORD format (zCom4, one zlib block per chapter) with OSIS markup."""

import html
import re
import struct
import zlib
from pathlib import Path

from didi.data.assets import fetch
from didi.errors import DidiError

INDEX = struct.Struct("<III")  # offset, compressed size and size of a block
NOTES = "EXPLANATORY NOTES"
MIN_SECTION_CHARACTERS = 500
# References to verses, such as "Mt. 5:3-5, 7"; without and with the name of the book.
_REFERENCE = r"(?:[1-3]? ?[A-Z][a-z]{1,4}\.? )?\d+:\s?\d+(?:-\d+)?(?:, ?\d+)*"
_NAMED = r"[1-3]? ?[A-Z][a-z]{1,4}\.? \d+:\s?\d+(?:-\d+)?(?:, ?\d+)*"


def read_blocks(folder: Path, testament: str) -> list[str]:
    """The chapters of a testament as OSIS markup, in their order; empty chapters are left out.

    Args:
        folder: folder of the module, with the index ``<testament>.czs`` and the blocks ``<testament>.czz``.
        testament: ``"ot"`` or ``"nt"``.

    Raises:
        DidiError: the index and the blocks do not match.
    """
    index, data = ((folder / f"{testament}.{suffix}").read_bytes() for suffix in ("czs", "czz"))
    blocks = []
    try:
        for start, compressed_size, size in INDEX.iter_unpack(index):
            block = zlib.decompress(data[start : start + compressed_size]) if compressed_size else b""
            if len(block) != size:
                raise ValueError(f"a block of {size} bytes has {len(block)}")
            blocks.append(block.decode("utf-8"))
    except (struct.error, zlib.error, ValueError) as error:
        raise DidiError(f"{folder} must hold a whole SWORD module; it does not ({error}); fetch it again") from error
    return [block for block in blocks if block]


def treasury_sections() -> list[str]:
    """Documents of Spurgeon's Treasury of David: for each Psalm the exposition, then the explanatory notes.

    Each part of a Psalm of several parts, such as the 119th, gives two documents. Hints to preachers and lists of books
    are not prose and are left out, as are verse numbers and references in brackets.

    Raises:
        DidiError: the module cannot be fetched or is damaged.
    """
    return [section for block in read_blocks(fetch("treasury"), "ot") for section in _sections(block)]


def _sections(block: str) -> list[str]:
    """The expositions and the notes of a chapter, in their order."""
    texts: list[list[str]] = [[]]
    is_prose = True
    pieces = re.split(r"<title[^>]*>(.*?)</title>", block, flags=re.DOTALL)
    for title, text in zip(["", *pieces[1::2]], pieces[::2], strict=True):
        if title.startswith(("HINTS", "WORK")):
            is_prose = False
        elif title:
            is_prose = True
            if title.startswith(NOTES) or (title.startswith("EXPOSITION") and len(texts) % 2 == 0):
                texts.append([])
        if is_prose:
            texts[-1].extend(_paragraphs(text))
    sections = ("\n\n".join(paragraphs) for paragraphs in texts)
    return [section for section in sections if len(section) >= MIN_SECTION_CHARACTERS]


def _paragraphs(markup: str) -> list[str]:
    """Plain text of the paragraphs that OSIS milestones delimit."""
    paragraphs = []
    for piece in re.split(r"<div [^>]*>|</?(?:item|list|lg?)\b[^>]*>", markup):
        text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", "", piece))).replace("•", "").strip()
        text = re.sub(r"^(?:Psalms \d+:\d+\*|Whole Psalm\.)\s*", "", text)
        text = re.sub(r"^Ver(?:ses?)?\.? \d+(?:[-, &]+\d+)*\.? *(?:\([^()]*\))?[.,]? *", "", text)
        text = re.sub(rf" ?[(\[](?:See |Compare |Comp\. )?{_REFERENCE}(?:[;,] ?{_REFERENCE})*\.?[)\]]", "", text)
        text = re.sub(
            rf"(?<=[.?!\"']) (?:{_NAMED}|Psalms? \d+:\d+)(?:[;,]? (?:{_REFERENCE}))*\.?(?= [A-Z\"]|$)", "", text
        )
        text = re.sub(r"(?<=[a-z])\.(?=[A-Z][a-z])", ". ", text)
        if re.search(r"[A-Za-z]{2}", text) and not text.startswith(("WORK UPON", "WORKS UPON", "HINTS TO")):
            paragraphs.append(text)
    return paragraphs
