"""Readers of corpora: named ones, local files and data sets of the Hub."""

import sys
from types import SimpleNamespace

import pytest

from didi.data import corpora, text
from didi.data.corpora import EOS, load_documents
from didi.errors import DidiError, UsageError

pytestmark = pytest.mark.usefixtures("cache")


def serve(monkeypatch, folder):
    for module in (corpora, text):
        monkeypatch.setattr(module, "fetch", lambda name: folder)


def test_news_keeps_long_distinct_articles_in_order(monkeypatch, tmp_path):
    long, other = "a" * 101, "b" * 101
    (tmp_path / "NewsArticles.csv").write_text(f'title,text\nx,{other}\ny,{"c" * 100}\nz,"{long}"\nw,{other}\n')
    serve(monkeypatch, tmp_path)
    assert load_documents("news") == [other, long]


def test_sotu_has_one_document_per_address(monkeypatch, tmp_path):
    (tmp_path / "1791_b.txt").write_text("second\n")
    (tmp_path / "1790_a.txt").write_text(" first")
    (tmp_path / "manifest.json").write_text("{}")
    serve(monkeypatch, tmp_path)
    assert load_documents("sotu") == ["first", "second"]


def test_brown_is_converted_to_plain_text(monkeypatch, tmp_path):
    (tmp_path / "ca01").write_text(
        "\n\n\t``/`` Is/bez it/pps 1/2/cd ?/. ?/. ''/'' asked/vbd Ivan/np Allen/np Jr./np ./.\n"
        "``/`` No/rb ''/'' ,/, (/( she/pps )/) said/vbd ;/. ;/.\n\n\n"
        "\tThe/at **zg/nn end/nn :35.3/cd --/-- now/rb !/. !/.\n"
    )
    (tmp_path / "cats.txt").write_text("ca01 news\n")
    serve(monkeypatch, tmp_path)
    assert load_documents("brown") == [
        '"Is it 1/2?" asked Ivan Allen Jr. "No," (she) said;\n\nThe end :35.3 -- now!',
    ]


@pytest.mark.parametrize(
    ("name", "content", "documents"),
    [
        ("a.txt", "one\ntwo\n\n \n\nthree\n\n", ["one\ntwo", "three"]),
        ("b.txt", f"one\n\ntwo\n{EOS}\nthree{EOS}", ["one\n\ntwo", "three"]),
        (
            "c.jsonl",
            '{"text": "one\\n\\ntwo", "id": 1}\n\n{"text": "three"}\n{"text": "three"}',
            ["one\n\ntwo", "three"],
        ),
    ],
)
def test_local_files_are_split_into_documents(tmp_path, name, content, documents):
    (tmp_path / name).write_text(content)
    assert load_documents(str(tmp_path / name)) == documents


BOM = b"\xef\xbb\xbf"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
@pytest.mark.parametrize("mark", [b"", BOM, BOM + b"\n", BOM * 2])
def test_byte_order_marks_are_dropped_and_line_ends_normalised(tmp_path, mark, end):
    plain, lines = tmp_path / "a.txt", tmp_path / "a.jsonl"
    # As in concatenated files, the second mark is in the middle.
    plain.write_bytes(end.join([mark + b"one", b"two", b"", BOM + b"three", b" ", b"four" + BOM]))
    assert load_documents(str(plain)) == ["one\ntwo", "three", "four\ufeff"]
    plain.write_bytes(end.join([mark + b"one", b"", b"two<|endoftext|>" + BOM + b"three"]))
    assert load_documents(str(plain)) == ["one\n\ntwo", "three"]
    lines.write_bytes(end.join([mark[:3] + b'{"text": "one\\r\\ntwo\\rthree"}', b"", b'{"text": "\\ufeff four"}']))
    assert load_documents(str(lines)) == ["one\ntwo\nthree", "four"]


def test_documents_that_differ_only_by_a_mark_are_copies(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"one\n\n" + BOM + b"one\n\n" + BOM + b"\n\ntwo")
    assert load_documents(str(tmp_path / "a.txt")) == ["one", "two"]


@pytest.mark.parametrize(
    ("name", "content", "place", "character"),
    [
        ("a.txt", "ab\n\ncd".encode("utf-16-le"), "a.txt", "U\\+0000"),
        ("a.txt", b"one\n\ntwo\x00", "a.txt", "U\\+0000"),
        ("a.jsonl", b'{"text": "a"}\n{"text": "b\\u0000"}', "line 2 of .*a.jsonl", "U\\+0000"),
        ("a.jsonl", b'{"text": "a\\ud83d"}', "line 1 of .*a.jsonl", "U\\+D83D"),
        ("a.jsonl", b'{"text": "\\udc00a"}', "line 1 of .*a.jsonl", "U\\+DC00"),
    ],
)
def test_invalid_characters_are_refused_with_their_position(tmp_path, name, content, place, character):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=rf"NUL and lone surrogates; .*{place} has {character}; convert or clean it$"):
        load_documents(str(tmp_path / name))


def test_a_surrogate_pair_in_json_is_one_character(tmp_path):
    (tmp_path / "a.jsonl").write_bytes(b'{"text": "\\ud83d\\ude00"}')
    assert load_documents(str(tmp_path / "a.jsonl")) == ["\U0001f600"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"text": "x"}\n{"txt": "y"}', "line 2 of .* is not"),
        ("a.jsonl", b'{"text": 3}', "line 1 of .* is not"),
        ("a.jsonl", b"[1]", "line 1 of .* is not"),
        ("a.jsonl", b"text", "line 1 of .* is not"),
        ("a.txt", b"\xff\xfe", "must be UTF-8"),
        ("a.txt", b"\n \n", "must hold text"),
        ("missing.txt", None, "must be an existing file"),
    ],
)
def test_a_file_that_is_not_a_corpus_is_refused(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError, match=message):
        load_documents(str(tmp_path / name))


def test_an_unknown_corpus_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="got 'brwn'; did you mean 'brown'"):
        load_documents("brwn")


def test_hub_names_are_passed_to_datasets(monkeypatch):
    monkeypatch.setattr("didi.hub.is_reachable", lambda: True)
    requests = []

    def load_dataset(*names, split):
        requests.append((*names, split))
        return Table(text=["one", "two"])

    class Table(dict):
        column_names = property(list)

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    assert load_documents("owner/name") == ["one", "two"]
    load_documents("owner/name/config:test[:1%]")
    assert requests == [("owner/name", "train"), ("owner/name", "config", "test[:1%]")]
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, split: Table(content=[]))
    with pytest.raises(UsageError, match=r"has \['content'\]"):
        load_documents("owner/name")
    monkeypatch.setattr(sys.modules["datasets"], "load_dataset", lambda *_, split: Table(content=["three"]))
    assert load_documents("owner/name:test#content") == ["three"]


def test_hub_failures_are_reported_in_one_line(monkeypatch):
    monkeypatch.setattr("didi.hub.is_reachable", lambda: True)

    def load_dataset(*_, split):
        raise ConnectionError("no route\nto the hub")

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    with pytest.raises(DidiError, match=r"^the Hub data set 'owner/name' could not be loaded \(no route\); check"):
        load_documents("owner/name")
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DidiError, match="pip install"):
        load_documents("owner/name")
