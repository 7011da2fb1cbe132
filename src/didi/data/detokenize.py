"""Detokenisation of corpora, by the rules that MDLM applies before it scores a corpus of Table 7.

The rules and their order are those of ``dataloader.py`` of https://github.com/kuleshov-group/mdlm, because published
zero-shot perplexities depend on them. One rule is left out, whose pattern (digits between slashes) occurs in no corpus.
A rule is a text or a pattern, and its replacement.
"""

import re
from collections.abc import Sequence

Rule = tuple[str | re.Pattern[str], str]


def _enclosing(opening: str, closing: str, inside: str, blank: str) -> Rule:
    """A rule that removes blanks inside a pair of quotation marks or brackets."""
    left, right = re.escape(opening), re.escape(closing)
    return re.compile(f"{left}{blank}({inside}){blank}{right}"), rf"{opening}\1{closing}"


PTB: tuple[Rule, ...] = (
    (" 's", "'s"),
    ("s ' ", "s' "),
    (" n't", "n't"),
    (" \n ", "\n"),
    ("\\/", "/"),
    (" N ", " 1 "),  # the corpus writes N for every number
    (" N ", " 1 "),  # again for "N N", as matches do not overlap
    ("$ 1", "$1"),
    ("# 1", "#1"),
    ("<unk>", "?"),
)
WIKITEXT: tuple[Rule, ...] = (
    ("s '", "s'"),
    *((f" @{mark}@ ", mark) for mark in "-,."),
    *((f" {mark} ", f"{mark} ") for mark in ":;.!?,"),
    _enclosing("(", ")", r"[^\)]*?", r"\s*"),
    _enclosing("[", "]", r"[^\]]*?", r"\s*"),
    _enclosing("{", "}", "[^}]*?", r"\s*"),
    _enclosing('"', '"', '[^"]*?', r"\s*"),
    _enclosing("'", "'", "[^']*?", r"\s*"),
    *((" ".join("=" * level), "=" * level) for level in (4, 3, 2)),  # headings
    (" ° ", "°"),
    (" \n", "\n"),
    ("\n ", "\n"),
    (" N ", " 1 "),
    (" 's", "'s"),
)
LM1B: tuple[Rule, ...] = (
    ("http : / / ", "http://"),
    ("https : / / ", "https://"),
    (re.compile(r" '(\w+)"), r"'\1"),
    (re.compile(r" (\w+) \. "), r" \1. "),
    (re.compile(r" (\w+) \.$"), r" \1."),
    (" ? ", "? "),
    (re.compile(r" \?$"), "?"),
    (" ! ", "! "),
    (re.compile(r" !$"), "!"),
    *((f" {mark} ", f"{mark} ") for mark in ",:;"),
    (" / ", "/"),
    _enclosing('"', '"', '[^"]+', " "),
    _enclosing("'", "'", "[^']+", " "),
    _enclosing("(", ")", r"[^\(\)]+", " "),
    _enclosing("[", "]", r"[^\[\]]+", " "),
    ("$ ", "$"),
    ("£ ", "£"),
)
SCIENTIFIC_PAPERS: tuple[Rule, ...] = (*WIKITEXT, *LM1B)
LAMBADA: tuple[Rule, ...] = (
    ("“", '"'),
    ("”", '"'),
    (re.compile(r"\s+\Z"), ""),
    (re.compile(r"\A\s*"), "\n"),
)


def detokenized(text: str, rules: Sequence[Rule]) -> str:
    """``text`` with all rules applied in order; a rule replaces all matches.

    Args:
        text: A document of the corpus.
        rules: One of the sequences of this module.
    """
    for pattern, replacement in rules:
        text = text.replace(pattern, replacement) if isinstance(pattern, str) else pattern.sub(replacement, text)
    return text
