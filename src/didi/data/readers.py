"""Readers of corpora with special formats: BBC articles, leads of Wikipedia articles, An Anarchist FAQ in markdown."""

import gzip
import json
import re

from didi.data.assets import fetch
from didi.errors import DidiError

MIN_CHARACTERS = 200
# A paragraph whose first words, a name in bold, are missing.
LOST_NAME = re.compile(r"\n\s*[,:;.]|[\w,]\s*\n\s*\n[a-z]")
_EMPTIED = re.compile(r"  | ,|, ,|,,| ;| \. |\( ?\)")  # traces of a removed formula or pronunciation
LEAD_HEAD = 80  # traces within these characters are of a pronunciation, later ones of a formula
_CITATION = re.compile(
    r"\s*\[(?=[^\[\]]*(?:\*\*|[Oo]p\.? ?[Cc]it|[Ii]bid|\bpp?\.? ?\d|\bquoted by|\bvol\. \d))"
    r"[^\[\]]*(?:\[[^\[\]]*\][^\[\]]*)*\]"
)


def bbc_articles() -> list[str]:
    """Articles of ``bbc``, section by section: the headline, a blank line, the text; exact copies are left out."""
    articles = []
    for path in sorted(fetch("bbc").glob("*/*.txt")):
        data = path.read_bytes()
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:  # one article has another encoding
            text = data.decode("cp1252")
        text = re.sub(r"VOTE\s.*?Results are indicative[^\n]*\n?", "", text, flags=re.DOTALL)
        articles.append(re.sub(r"<?br />|<(?=\s)", "", text.replace('" .', '."')).strip())
    whole = (article for article in articles if not LOST_NAME.search(article))
    return list(dict.fromkeys(whole))


def wiki_leads() -> list[str]:
    """Lead paragraphs of Wikipedia articles; short ones and those with missing formulas are left out.

    Raises:
        DidiError: the asset cannot be fetched or read.
    """
    path = fetch("wiki-leads") / "summaries_en-us.json"
    try:
        leads = [entry["extract"] for entry in json.loads(path.read_text(encoding="utf-8")).values()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise DidiError(f"{path} must map titles to objects with an 'extract'; it does not; fetch it again") from error
    texts = (
        re.sub(r"\[(?:note \d+|\d+|[a-z])\]", "", re.sub(r"\s*\n\s*", " ", lead.replace("\xa0", " "))).strip()
        for lead in leads
    )
    whole = (text for text in texts if not _EMPTIED.search(text, LEAD_HEAD))
    mended = (re.sub(r"\s+([,;.](?= ))", r"\1", re.sub(r"\( ?\)", "", text)) for text in whole)
    return [re.sub(r",(?: ?,)+", ",", re.sub(r" {2,}", " ", text)) for text in mended if len(text) >= MIN_CHARACTERS]


def afaq_sections() -> list[str]:
    """Sections of An Anarchist FAQ, each under its heading, without markup, references and navigation."""
    sections = []
    for path in sorted(fetch("afaq").glob("*.md.gz")):
        with gzip.open(path, "rt", encoding="utf-8") as stream:
            sections.extend(_markdown_sections(stream.read()))
    return sections


def _markdown_sections(markdown: str) -> list[str]:
    """Plain text of each section, with its heading; sections without prose are left out."""
    markdown = re.split(r"^\[‹|^\[up\]", markdown, maxsplit=1, flags=re.MULTILINE)[0]
    sections = []
    for piece in re.split(r"^(?=#{1,6}(?:\s|$))", markdown, flags=re.MULTILINE):
        blocks = re.split(r"\n\s*\n", piece.strip())
        paragraphs = [text for block in blocks if (text := _plain(block))]
        if sum(map(len, paragraphs)) >= MIN_CHARACTERS:
            sections.append("\n\n".join(paragraphs))
    return sections


def _plain(block: str) -> str:
    """A block of markdown as one line of plain text; empty for rules, tables and lists of links."""
    lines = [re.sub(r"^\s*(?:>\s?)+|^#+\s*", "", line).rstrip() for line in block.split("\n")]
    if block.startswith(("  * [", "---", "|")) or " | " in block or re.fullmatch(r"[\s*_-]+", block):
        return ""
    lines = [re.sub(r"^\s*(?:\*|\d+\.)\s+", "", line) for line in lines]
    text = re.sub(r"(?<=[a-z])- (?=[a-z])(?!- (?:and|or|to)\b)", "-", " ".join(line.strip() for line in lines))
    text = re.sub(r"!?\[([^\[\]]*)\]\([^()\s]*(?:\s+\"[^\"]*\")?\)", r"\1", text)
    text = re.sub(r'\*\* (?="_)', "**", _CITATION.sub("", text))
    text = re.sub(r"\s*\((?:see|See|discussed in|as discussed in)[^()]*\b(?:section|appendix)[^()]*\)", "", text)
    text = re.sub(r"\*\*|\\(?=[-_*\[\]#.`])|(?<!\w)_|_(?!\w)", "", text)
    text = re.sub(r"\[(sic!?|\.\.\.|\. \. \.)\]", "", text)
    text = re.sub(r"\[([^\[\]]*)\]", r"\1", text)  # changes by the editor of a quotation
    text = re.sub(r"^(?:[A-J]\.)?\d+(?:\.\d+)*\.?\s+(?=[A-Z\"])", "", text)
    text = re.sub(r"\. \. \.(?: \.)?", "...", text)
    text = re.sub(r"\s+([,;:?!)]|\.(?!\.))", r"\1", re.sub(r"([(\[]) +", r"\1", text))
    text = re.sub(r"(?<!\.)\.\s*\.(?= [A-Z]|$)", ".", text)
    return re.sub(r"\s+", " ", re.sub(r"(?<=\() +| +(?=\))", "", text)).strip()
