"""Corpora for zero-shot evaluation: the seven of Table 7 by Hub name, and stand-ins from package registries.

Stand-ins have their own names, because their results compare models with each other only, not with published results of
the corpora that they replace.
"""

import bz2
import re
from collections.abc import Callable
from dataclasses import dataclass
from xml.etree import ElementTree

from didi.data import detokenize
from didi.data.assets import fetch
from didi.data.corpora import brown_texts, hub_texts, load_documents, news_articles
from didi.data.detokenize import Rule, detokenized
from didi.data.text import split_documents
from didi.errors import DidiError, from_checkout

MIN_ARTICLE_CHARACTERS = 1000
SENTENCE_END = re.compile(r"(?<=[.!?])[\"'”’]?\s+(?=[\"'“‘A-Z])")


@dataclass(frozen=True)
class HubCorpus:
    """A corpus of Table 7, prepared as MDLM does (https://github.com/kuleshov-group/mdlm).

    An end-of-text token is appended to each text, also to empty and repeated ones. The texts are then joined and cut
    into blocks of the network's length. MDLM's configurations for the tokenizer of GPT-2 do so for all seven corpora
    (that for BERT's tokenizer does not for LM1B).

    Attributes:
        place: the split that MDLM reports, an argument of ``corpora.hub_texts``; older data sets need a version of
            ``datasets`` that runs loading scripts.
        rules: rules of ``detokenize`` for each text; empty if the corpus is not tokenised.
    """

    place: str
    rules: tuple[Rule, ...] = ()

    def documents(self) -> list[str]:
        """The texts, detokenised.

        Raises:
            DidiError: the corpus cannot be fetched.
        """
        return [detokenized(text, self.rules) for text in hub_texts(self.place)]


HUB = {
    "ptb": HubCorpus("ptb-text-only/ptb_text_only:validation#sentence", detokenize.PTB),
    "wikitext": HubCorpus("Salesforce/wikitext/wikitext-103-raw-v1:validation", detokenize.WIKITEXT),
    "lm1b": HubCorpus("billion-word-benchmark/lm1b:test", detokenize.LM1B),
    "lambada": HubCorpus("EleutherAI/lambada_openai:test", detokenize.LAMBADA),
    "ag-news": HubCorpus("fancyzhx/ag_news:test"),
    "pubmed": HubCorpus("armanc/scientific_papers/pubmed:validation#article", detokenize.SCIENTIFIC_PAPERS),
    "arxiv": HubCorpus("armanc/scientific_papers/arxiv:validation#article", detokenize.SCIENTIFIC_PAPERS),
}


def zero_shot_documents(name: str) -> list[str]:
    """The documents of a corpus for zero-shot scoring.

    Args:
        name: one of ``HUB`` or ``STAND_INS``, or any corpus of ``load_documents``.

    Raises:
        UsageError: the name is unknown.
        DidiError: the corpus cannot be fetched.
    """
    if name in HUB:
        return HUB[name].documents()
    return STAND_INS[name]() if name in STAND_INS else load_documents(name, others=(*HUB, *STAND_INS))


def is_detokenized(name: str) -> bool:
    """Whether ``zero_shot_documents`` detokenises a corpus."""
    return name in HUB and bool(HUB[name].rules)


def unseen_stand_ins(corpus: str | None) -> list[str]:
    """The stand-ins without texts from the training and validation splits of a corpus.

    Args:
        corpus: the corpus that a model was trained on; None if it is unknown.

    Returns:
        Keys of ``STAND_INS``. For ``prose`` only ``wiki`` is left: ``prose`` contains Brown and, with another split,
        the news. It may also contain later versions of a few leads of ``wiki`` articles.
    """
    return [name for name in STAND_INS if not name.startswith(_CONTAINED.get(corpus or "", ()))]


def _held_out_articles() -> list[dict[str, str]]:
    """News articles of the test split, which models of the corpus ``news`` were not trained on."""
    held_out = set(split_documents(load_documents("news")).test)
    return [article for article in news_articles() if article["text"] in held_out]


def _news_sentences() -> list[str]:
    texts = (article["text"] for article in _held_out_articles())
    lines = (line for text in texts for line in text.splitlines())
    sentences = (sentence.strip() for line in lines for sentence in SENTENCE_END.split(line))
    return [sentence for sentence in sentences if sentence]


def _news_titles() -> list[str]:
    return [title for article in _held_out_articles() if (title := article["title"].strip())]


def _wiki() -> list[str]:
    try:
        import mwparserfromhell
    except ImportError as error:
        raise DidiError(
            f"the corpus 'wiki' needs the package mwparserfromhell: {from_checkout('eval')} ({error})"
        ) from error
    articles = []
    with bz2.open(next(fetch("wiki").glob("*.bz2"))) as stream:
        for _, element in ElementTree.iterparse(stream):
            if (
                element.tag.rpartition("}")[2] == "text"
                and (markup := element.text or "")
                and not markup.startswith("#REDIRECT")
            ):
                plain = re.sub(r"(?m)^(Category|File|Image):.*$", "", mwparserfromhell.parse(markup).strip_code())
                text = re.sub(r"\n{3,}", "\n\n", plain).strip()
                if len(text) >= MIN_ARTICLE_CHARACTERS:
                    articles.append(text)
    return articles


_CONTAINED: dict[str, tuple[str, ...]] = {"brown": ("brown-",), "prose": ("brown-", "news-")}
STAND_INS: dict[str, Callable[[], list[str]]] = {
    "brown-news": lambda: brown_texts("ca[0-9][0-9]"),  # for PTB
    "wiki": _wiki,  # for WikiText
    "news-sentences": _news_sentences,  # for LM1B
    "brown-fiction": lambda: brown_texts("ck[0-9][0-9]"),  # for LAMBADA
    "news-titles": _news_titles,  # for AG News
    "brown-science": lambda: brown_texts("cj0[1-9]") + brown_texts("cj1[0-7]"),  # nature and medicine; for PubMed
    "brown-maths": lambda: [  # with engineering; for arXiv
        text for files in ("cj1[89]", "cj2[01]", "cj69", "cj7[0-9]", "cj80") for text in brown_texts(files)
    ],
}
