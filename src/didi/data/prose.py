"""The corpus ``prose``: English from seven sources in one typography, near copies removed, two sources capped."""

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
SHINGLES_KEPT = 8  # one in so many, chosen by its hash
MIN_SHINGLES = 4
COPIED_SHARE = 0.5  # of the shingles that another document has too
STAGE_DIRECTION = r"[\[(](?:Laughter|laughter|Applause|applause)[^\[\]()]{0,40}[\])]"
CAPS = {"treasury": 0.20, "afaq": 0.10}  # of all characters

# In the order in which the first of two near copies is kept.
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
    """The documents of ``prose`` with the source of each, in an order that is the same on all machines.

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

    A document repeats another if it is made of the same words, or if at least half of a sample of its runs of
    ``SHINGLE_WORDS`` words occur first in that one.

    Args:
        documents: pairs of a source and a text.

    Returns:
        The kept ones, in their order.
    """
    first: dict[int, int] = {}  # shingle -> number of the document that had it first
    seen: set[bytes] = set()
    word_hashes: dict[str, int] = {}
    kept = []
    for number, (source, text) in enumerate(documents):
        words = re.findall(r"\w+", text.lower())
        exact = hashlib.blake2b(" ".join(words).encode(), digest_size=16).digest()
        shingles = _shingles(words, word_hashes)
        votes = Counter(first[shingle] for shingle in shingles if shingle in first)
        most = max(votes.values(), default=0)
        if exact in seen or (len(shingles) >= MIN_SHINGLES and most >= COPIED_SHARE * len(shingles)):
            continue
        seen.add(exact)
        for shingle in shingles:
            first.setdefault(shingle, number)
        kept.append((source, text))
    return kept


def capped(documents: Sequence[tuple[str, str]], caps: Mapping[str, float]) -> list[tuple[str, str]]:
    """Thin sources out until each makes up no more than its share of all characters.

    Which documents of a source stay is decided by a hash of their text, as good as chance and always the same.

    Args:
        documents: pairs of a source and a text.
        caps: largest share by source; together below 1.

    Returns:
        The kept ones, in their order.
    """
    sizes: Counter[str] = Counter()
    for source, text in documents:
        sizes[source] += len(text)
    binding = sorted(caps, key=lambda source: sizes[source] / caps[source])
    while True:  # a source below its cap counts with what it has
        free = sum(size for source, size in sizes.items() if source not in binding)
        total = free / (1 - sum(caps[source] for source in binding))
        if not binding or sizes[binding[0]] > caps[binding[0]] * total:
            break
        del binding[0]
    room = {source: caps[source] * total for source in binding}
    dropped = set()
    for number in sorted(range(len(documents)), key=lambda number: _digest(documents[number][1])):
        source, text = documents[number]
        if source in room:
            if len(text) > room[source]:
                dropped.add(number)
            else:
                room[source] -= len(text)
    return [document for number, document in enumerate(documents) if number not in dropped]


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def _shingles(words: Sequence[str], word_hashes: dict[str, int]) -> list[int]:
    """Hashes of a document's runs of words, distinct, one in ``SHINGLES_KEPT`` of all there are."""
    for word in words:
        if word not in word_hashes:
            word_hashes[word] = zlib.crc32(word.encode())
    hashes = np.array([word_hashes[word] for word in words], dtype=np.uint64)
    num_runs = len(hashes) - SHINGLE_WORDS + 1
    if num_runs < 1:
        return []
    runs = np.zeros(num_runs, dtype=np.uint64)
    for offset in range(SHINGLE_WORDS):
        runs = (runs + hashes[offset : offset + num_runs]) * np.uint64(0x9E3779B97F4A7C15)  # wraps
        runs ^= runs >> np.uint64(29)
    return [int(run) for run in np.unique(runs[runs % np.uint64(SHINGLES_KEPT) == 0])]
