"""The corpus ``prose``: English from seven sources with uniform typography, without near copies, two sources capped."""

import hashlib
import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from didi.data.corpora import brown_texts, load_documents, news_articles
from didi.data.readers import afaq_sections, bbc_articles, wiki_leads
from didi.data.sword import treasury_sections
from didi.data.tidy import mend_brown, mend_news, tidy

MIN_CHARACTERS = 200
SHINGLE_WORDS = 6
SHINGLES_KEPT = 8  # one of 8 shingles is kept, chosen by its hash
MIN_SHINGLES = 4  # documents with fewer are compared as a whole only
COPIED_SHARE = 0.5  # share of shingles in common with an earlier document
STAGE_DIRECTION = r"[\[(](?:Laughter|laughter|Applause|applause)[^\[\]()]{0,40}[\])]"
CAPS = {"treasury": 0.20, "afaq": 0.10}  # largest share of all characters

# The order matters: of two near copies the first is kept.
SOURCES: dict[str, Callable[[], list[str]]] = {
    "news": lambda: [mend_news(article["text"]) for article in news_articles()],
    "bbc": bbc_articles,
    "wiki-leads": wiki_leads,
    "sotu": lambda: [re.sub(STAGE_DIRECTION, "", text) for text in load_documents("sotu")],
    "brown": lambda: [mend_brown(text) for text in brown_texts()],
    "treasury": treasury_sections,
    "afaq": afaq_sections,
}


def prose_documents() -> list[tuple[str, str]]:
    """The documents of ``prose`` and their sources, in the same order on all machines.

    Returns:
        Pairs of a key of ``SOURCES`` and a document of at least ``MIN_CHARACTERS``; the documents are distinct.

    Raises:
        DidiError: a source cannot be fetched.
    """
    documents = [(source, tidy(text)) for source, read in SOURCES.items() for text in read()]
    long = [(source, text) for source, text in documents if len(text) >= MIN_CHARACTERS]
    return capped(without_copies(long), CAPS)


def without_copies(documents: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Drop every document that repeats an earlier one.

    A document repeats another if both have the same sequence of words, or if the other document is the first to contain
    at least half of a sample of its shingles (runs of ``SHINGLE_WORDS`` words).

    Args:
        documents: pairs of a source and a text.

    Returns:
        The documents that are kept, in their order.
    """
    first_document: dict[int, int] = {}  # shingle -> number of the first document that contains it
    seen_digests: set[bytes] = set()
    word_hashes: dict[str, int] = {}
    kept = []
    for number, (source, text) in enumerate(documents):
        words = re.findall(r"\w+", text.lower())
        digest = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        shingles = _shingles(words, word_hashes)
        common = Counter(first_document[shingle] for shingle in shingles if shingle in first_document)
        most_common = max(common.values(), default=0)
        if digest in seen_digests or (len(shingles) >= MIN_SHINGLES and most_common >= COPIED_SHARE * len(shingles)):
            continue
        seen_digests.add(digest)
        for shingle in shingles:
            first_document.setdefault(shingle, number)
        kept.append((source, text))
    return kept


def capped(documents: Sequence[tuple[str, str]], caps: Mapping[str, float]) -> list[tuple[str, str]]:
    """Remove documents until each source has at most its share of all characters.

    A hash of the text decides which documents of a source stay, a pseudorandom choice that is always the same.

    Args:
        documents: pairs of a source and a text.
        caps: largest share by source; the sum is below 1.

    Returns:
        The documents that are kept, in their order.
    """
    sizes: Counter[str] = Counter()
    for source, text in documents:
        sizes[source] += len(text)
    binding = sorted(caps, key=lambda source: sizes[source] / caps[source])
    while True:  # a source below its cap is not binding and counts with its full size
        free = sum(size for source, size in sizes.items() if source not in binding)
        total = free / (1 - sum(caps[source] for source in binding))
        if not binding or sizes[binding[0]] > caps[binding[0]] * total:
            break
        del binding[0]
    characters_left = {source: caps[source] * total for source in binding}
    dropped = set()
    for number in sorted(range(len(documents)), key=lambda number: _digest(documents[number][1])):
        source, text = documents[number]
        if source in characters_left:
            if len(text) > characters_left[source]:
                dropped.add(number)
            else:
                characters_left[source] -= len(text)
    return [document for number, document in enumerate(documents) if number not in dropped]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _shingles(words: Sequence[str], word_hashes: dict[str, int]) -> list[int]:
    """Distinct hashes of runs of ``SHINGLE_WORDS`` words of a document; one of ``SHINGLES_KEPT`` is kept."""
    for word in words:
        if word not in word_hashes:
            word_hashes[word] = zlib.crc32(word.encode())
    hashes = np.array([word_hashes[word] for word in words], dtype=np.uint64)
    num_runs = len(hashes) - SHINGLE_WORDS + 1
    if num_runs < 1:
        return []
    runs = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        runs = (runs + hashes[offset : offset + num_runs]) * np.uint64(0x9E3779B97F4A7C15)  # wraps around
        runs ^= runs >> np.uint64(29)
    return [int(run) for run in np.unique(runs[runs % np.uint64(SHINGLES_KEPT) == 0])]
