"""Corpora of zero-shot likelihoods: their names, stand-ins and detokenisation."""

import bz2
import sys

import pytest

from didi.data import zero_shot
from didi.data.corpora import HUB_NAME
from didi.data.zero_shot import HUB, STAND_INS, is_detokenized, unseen_stand_ins, zero_shot_documents
from didi.errors import DidiError, UsageError


def test_the_seven_corpora_of_table_7_have_hub_names():
    assert list(HUB) == ["ptb", "wikitext", "lm1b", "lambada", "ag-news", "pubmed", "arxiv"]
    assert all(HUB_NAME.fullmatch(corpus.place) for corpus in HUB.values())
    assert len(STAND_INS) == 7


def test_a_name_is_that_of_a_hub_corpus_a_stand_in_or_a_file(monkeypatch):
    monkeypatch.setattr(zero_shot, "load_documents", lambda name, **_: [name])
    monkeypatch.setattr(zero_shot, "hub_texts", lambda place: [place])
    assert zero_shot_documents("ptb") == ["ptb-text-only/ptb_text_only:validation#sentence"]
    assert zero_shot_documents("mine.txt") == ["mine.txt"]
    monkeypatch.setitem(STAND_INS, "wiki", lambda: ["an article"])
    assert zero_shot_documents("wiki") == ["an article"]


def test_unseen_stand_ins_exclude_the_training_corpus():
    assert unseen_stand_ins("news") == unseen_stand_ins(None) == list(STAND_INS)
    assert unseen_stand_ins("brown") == ["wiki", "news-sentences", "news-titles"]
    assert unseen_stand_ins("prose") == ["wiki"]


def test_an_unknown_name_is_refused():
    with pytest.raises(UsageError, match="got 'wikitxt'"):
        zero_shot_documents("wikitxt")


def test_sentences_and_titles_come_from_held_out_articles_only(monkeypatch):
    articles = [
        {"title": f"Title {i}", "text": f"First of {i}. \u201cSecond one?\u201d Third!\nNext line of {i}"}
        for i in range(100)
    ]
    monkeypatch.setattr(zero_shot, "news_articles", lambda: articles)
    monkeypatch.setattr(zero_shot, "load_documents", lambda _: [article["text"] for article in articles])
    titles = zero_shot_documents("news-titles")
    assert len(titles) == 5
    sentences = zero_shot_documents("news-sentences")
    number = titles[0].split()[1]
    start = sentences.index(f"First of {number}.")
    assert sentences[start + 2 : start + 4] == ["Third!", f"Next line of {number}"]
    assert len(sentences) == 5 * 4


def test_markup_is_stripped_from_articles(monkeypatch, tmp_path):
    article = (
        "'''Bold''' text with a [[link|shown link]] and {{a template}}.\n\n[[Category:Things]]\n" + "More words. " * 100
    )
    pages = "".join(
        f"<page><text>{text}</text></page>" for text in (article, "#REDIRECT [[Other]]" + " " * 2000, "short")
    )
    with bz2.open(tmp_path / "dump.bz2", "wt") as stream:
        stream.write(f"<mediawiki>{pages}</mediawiki>")
    monkeypatch.setattr(zero_shot, "fetch", lambda _: tmp_path)
    (text,) = zero_shot_documents("wiki")
    assert text.startswith("Bold text with a shown link and .\n\nMore words.")
    monkeypatch.setitem(sys.modules, "mwparserfromhell", None)
    with pytest.raises(DidiError, match="pip install"):
        zero_shot_documents("wiki")


def test_texts_of_table_7_are_detokenised_and_neither_dropped_nor_merged(monkeypatch):
    monkeypatch.setattr(zero_shot, "hub_texts", lambda place: ["it 's N N %", "", "it 's N N %", "“ a ”"])
    assert zero_shot_documents("ptb") == ["it's 1 1 %", "", "it's 1 1 %", "“ a ”"]
    assert zero_shot_documents("lambada")[3] == '\n" a "'
    assert zero_shot_documents("ag-news") == ["it 's N N %", "", "it 's N N %", "“ a ”"]
    detokenised = [name for name in (*HUB, *STAND_INS, "mine.txt") if is_detokenized(name)]
    assert detokenised == ["ptb", "wikitext", "lm1b", "lambada", "pubmed", "arxiv"]
