"""Corpus prose: uniform typography, readers of its sources, near copies and caps."""

import gzip
import json
import struct
import zlib

import pytest

from didi.data import prose, readers, sword
from didi.data.corpora import CORPORA, load_documents
from didi.data.prose import CAPS, SOURCES, capped, prose_documents, without_copies
from didi.data.sword import read_blocks
from didi.data.tidy import mend_brown, mend_news, tidy
from didi.errors import DidiError

LONG = "Every good deed is remembered by somebody. " * 5


def words(first, number):
    """A text of ``number`` distinct words."""
    return " ".join(f"w{index}" for index in range(first, first + number))


def serve(monkeypatch, module, folder):
    monkeypatch.setattr(module, "fetch", lambda name: folder)


# Typography


@pytest.mark.parametrize(
    ("text", "tidied"),
    [
        ("Tom &amp; Jerry&#8217;s &quot;caf&eacute;&quot;", 'Tom & Jerry\'s "café"'),
        ("cafe\u0301", "café"),
        ("“It’s” ‘so’ ``said'' he", '"It\'s" \'so\' "said" he'),
        ("one--two -- three—four –five", "one — two — three — four — five"),
        ("in 1914–18, self-made", "in 1914-18, self-made"),
        ("a\u00a0b \t c\u200b\ufeff d\x00", "a b c d"),
        ("a wrapped\nline\n\n \n\nnext  one ", "a wrapped line\n\nnext one"),
        ("wait . . . what? . . . . End…", "wait ... what? ... End..."),
        ("odd , here ; and ( there ) .", "odd, here; and (there)."),
        ("a name, , () and no more..", "a name, and no more."),
        ("=====\n\ntext ***** text", "text text"),
        ("\n, who left", "who left"),
        ("at .5 percent", "at .5 percent"),
    ],
)
def test_prose_has_uniform_typography(text, tidied):
    assert tidy(text) == tidied
    assert tidy(tidied) == tidied


@pytest.mark.parametrize(
    ("damaged", "mended"),
    [
        ('"I don"t know,"?she said. You\'r late.', "\"I don't know,\" she said. You're late."),
        ('His "spring Awakening"?character left.', 'His "Spring Awakening" character left.'),
        ('Most teachers"?unions agreed.', "Most teachers' unions agreed."),
        ('The fate "?at least now "?of thousands', "The fate — at least now — of thousands"),
        ('Is that so?"?He left.', 'Is that so?" He left.'),
        (
            "He was ill.- She left the- house, and second- or third-rate",
            "He was ill. She left the house, and second- or",
        ),
        ("Sinn F��in and the garda�� met", "Sinn Féin and the gardaí met"),
        ('They were "�baseless,"?he said', 'They were "baseless," he said'),
        ('He said. "the war is "Anly" over "Lave it"', 'He said. "The war is "Only" over "have it"'),
        ("It pays �194m.", ""),
        ("In Sch?nberg it rained.", ""),
        (
            "A premium. Send Facebook Twitter Google+ Whatsapp Digg Permalink http://dw.com/p/2W1pc While profits",
            "A premium. While profits",
        ),
        ("It ended. Share this slide: How will it impact you? Learn more", "It ended."),
        ("It ended.  Source:-Al Jazeera and news agencies", "It ended."),
        ("was prosecuted. READ MORE: Surviving death row In 2012, she left", "was prosecuted. In 2012, she left"),
    ],
)
def test_news_is_repaired_where_possible(damaged, mended):
    assert tidy(mend_news(damaged)).startswith(mended)
    assert bool(mend_news(damaged)) == bool(mended)


def test_brown_quotation_marks_follow_the_punctuation():
    assert (
        mend_brown('"Zing"! I cried. "You"? "I forgive" --\n\nAt 43*0 C.')
        == '"Zing!" I cried. "You?" "I forgive--"\n\nAt 43 C.'
    )


# SWORD


def module(folder, *blocks):
    """Write a compressed SWORD module; an empty block is a missing chapter."""
    index, data = b"", b""
    for block in blocks:
        packed = zlib.compress(block.encode()) if block else b""
        index += struct.pack("<III", len(data), len(packed), len(block.encode()))
        data += packed
    (folder / "ot.czs").write_bytes(index)
    (folder / "ot.czz").write_bytes(data)


def test_blocks_are_read_by_their_index(tmp_path):
    module(tmp_path, "first é", "", "third")
    assert read_blocks(tmp_path, "ot") == ["first é", "third"]


def test_a_damaged_module_is_an_error(tmp_path):
    module(tmp_path, "first", "second")
    data = (tmp_path / "ot.czz").read_bytes()
    index = (tmp_path / "ot.czs").read_bytes()
    for file, content in (("ot.czz", data[:-3]), ("ot.czs", index[:-3]), ("ot.czs", index[:-4] + b"\7\0\0\0")):
        module(tmp_path, "first", "second")
        (tmp_path / file).write_bytes(content)
        with pytest.raises(DidiError, match="must hold a whole SWORD module"):
            read_blocks(tmp_path, "ot")


def test_a_psalm_has_two_sections_of_plain_text_exposition_and_notes(monkeypatch, tmp_path):
    def paragraph(text):
        return f'<div sID="g1" type="x-p"/> {text} <div eID="g1" type="x-p"/>'

    def psalm(title):
        return (
            f'<chapter osisID="Ps.1"/><title type="x-s">{title}</title>'
            + paragraph('<hi type="italic">This Psalm</hi> is a &amp; b. ' + LONG * 3)
            + '<title type="x-s">EXPOSITION</title>'
            + paragraph(
                '<hi type="bold">Verse 1.</hi> <hi type="italic">Blessed.</hi> See. (<reference>Ps 2:1</reference>)'
            )
            + '<title type="x-s">EXPLANATORY NOTES AND QUAINT SAYINGS.</title>'
            + paragraph("Verses 1-2. A note in his name. <reference>Lu 24:47</reference>. Not that. " + LONG * 3)
            + '<title type="x-s">HINTS TO THE VILLAGE PREACHER <hi>Whole Psalm.</hi></title>'
            + paragraph("I. A hint. " + LONG * 5)
        )

    module(tmp_path, "<milestone/>", psalm("Psalm 1 OVERVIEW"), psalm("Psalm 2 OVERVIEW"))
    serve(monkeypatch, sword, tmp_path)
    sections = sword.treasury_sections()
    assert len(sections) == 4
    assert sections[0] == f"This Psalm is a & b. {(LONG * 3).strip()}\n\nBlessed. See."
    assert sections[1] == f"A note in his name. Not that. {(LONG * 3).strip()}"
    assert load_documents("treasury") == sections[:2]
    part = psalm("Psalm 119 OVERVIEW")
    module(tmp_path, part + part[part.index('<title type="x-s">EXPOSITION<') :].replace("See.", f"See. {LONG * 3}"))
    assert sword.treasury_sections() == [*sections[:2], f"Blessed. See. {(LONG * 3).strip()}", sections[1]]


# Other formats


def test_bbc_articles_keep_their_headline_and_occur_once(monkeypatch, tmp_path):
    for name, data in {
        "tech/002.txt": b"Title\n\nA \xa35m deal.\n",
        "business/001.txt": b"Head\n\nBody here.\n",
        "tech/001.txt": b"Head\n\nBody here.\n\n",
        "tech/003.txt": b"Head\n\n, who lost his name in bold.\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    serve(monkeypatch, readers, tmp_path)
    assert load_documents("bbc") == readers.bbc_articles() == ["Head\n\nBody here.", "Title\n\nA £5m deal."]


def test_wiki_leads_are_long_and_have_no_gaps_of_formulas(monkeypatch, tmp_path):
    leads = {
        "Haiku": f"Haiku  is a type of  poetry,, c.\n14 lines. {LONG}",
        "Field": f"{LONG} The degree of  is finite, denoted by , as it must be.",
        "Short": "A short one.",
    }
    path = tmp_path / "summaries_en-us.json"
    path.write_text(json.dumps({title: {"extract": text} for title, text in leads.items()}))
    serve(monkeypatch, readers, tmp_path)
    assert load_documents("wiki-leads") == [f"Haiku is a type of poetry, c. 14 lines. {LONG.strip()}"]
    path.write_text('["none"]')
    with pytest.raises(DidiError, match="must map titles"):
        load_documents("wiki-leads")


def test_faq_sections_are_prose_without_markup(monkeypatch, tmp_path):
    markdown = f"""# B.1 Why are they _"against"_ it?

First (see [section H.4](secH4.md) for more details) it _"is **authority** "_ of self-
made men. [ **Freedom and
the State** , p. 33] {LONG}

> _"[n]o one should be [sic] . . . free."_

  * [A list](a.md)

* * *

## B.1.1 Empty?

## B.1.2 Next

{LONG}

[‹ B.0 Introduction](secBint.md "Go to previous page")
[up](secBcon.md "Go to parent page")
"""
    with gzip.open(tmp_path / "secB1.md.gz", "wt") as stream:
        stream.write(markdown)
    serve(monkeypatch, readers, tmp_path)
    assert load_documents("afaq") == [
        f'Why are they "against" it?\n\nFirst it "is authority" of self-made men. {LONG.strip()}'
        '\n\n"no one should be ... free."',
        f"Next\n\n{LONG.strip()}",
    ]


# All sources together


def test_near_copies_of_earlier_documents_are_dropped():
    original, other = words(0, 400), words(1000, 400)
    half = f"{words(0, 280)} {words(2000, 120)}"
    quotation = f"{words(0, 100)} {words(3000, 300)}"
    documents = [
        ("a", original),
        ("b", original.upper().replace(" ", ", ")),
        ("a", half),
        ("b", quotation),
        ("b", other),
        ("c", "short one"),
        ("c", "short two"),
        ("d", "Short, one!"),
    ]
    assert without_copies(documents) == [documents[index] for index in (0, 3, 4, 5, 6)]


def test_a_copy_is_detected_after_others_quoted_the_original():
    original = words(0, 400)
    quotations = [f"{words(100 * part, 100)} {words(1000 * part + 1000, 300)}" for part in range(3)]
    documents = [("a", text) for text in (original, *quotations, f"{original} at last")]
    assert without_copies(documents) == documents[:-1]


def test_every_source_is_within_its_cap_in_any_order_of_the_documents():
    documents = [(source, f"{source}{index:03}" + "x" * 96) for source in "abc" for index in range(40)]
    kept = capped(documents, {"b": 0.2, "c": 0.3})
    counts = [sum(source == name for source, _ in kept) for name in "abc"]
    assert counts == [40, 16, 24]
    assert kept == [document for document in documents if document in set(kept)]
    assert set(capped(documents[::-1], {"b": 0.2, "c": 0.3})) == set(kept)


def test_a_source_below_its_cap_is_kept_completely():
    documents = [(source, f"{index:04}" + "x" * 96) for source in "abbbc" for index in range(30)]
    documents = [(source, f"{number:05}{text}") for number, (source, text) in enumerate(documents)]
    kept = capped(documents, {"b": 0.4, "c": 0.6 - 0.01})
    counts = [sum(source == name for source, _ in kept) for name in "abc"]
    assert counts == [30, 40, 30]


def test_prose_returns_the_source_of_each_document(monkeypatch):
    monkeypatch.setattr(
        prose,
        "SOURCES",
        {
            "one": lambda: [f"“{words(0, 90)}”", "short", words(100, 90)],
            "two": lambda: [words(0, 90), words(200, 90)],
        },
    )
    assert prose_documents() == [
        ("one", f'"{words(0, 90)}"'),
        ("one", words(100, 90)),
        ("two", words(200, 90)),
    ]
    assert load_documents("prose") == [text for _, text in prose_documents()]


def test_every_source_of_prose_is_a_corpus():
    assert list(CORPORA) == [*SOURCES, "prose"]
    assert set(CAPS) <= set(SOURCES)


@pytest.mark.network
def test_the_prose_corpus_has_the_documented_size_and_no_markup():
    documents = prose_documents()
    sizes = {source: sum(len(text) for name, text in documents if name == source) for source in SOURCES}
    total = sum(sizes.values())
    assert 52e6 < total < 54e6
    assert all(sizes[source] <= share * total * 1.001 for source, share in CAPS.items())
    assert {source for source, size in sizes.items() if size > 4e6} == set(SOURCES)
    text = "\n".join(text for _, text in documents)
    assert not [mark for mark in ("&quot;", "\u00a0", "�", "  ", "<hi", "](", "**_", "Permalink") if mark in text]
