"""``didi generate`` of a protein bundle: lengths, FASTA, JSON lines."""

import io
import json
import re
from pathlib import Path

import pytest

from didi.apps.generate import run_generate
from didi.data.fasta import read_fasta
from didi.data.protein import protein_tokenizer
from didi.errors import UsageError
from didi.models.bundle import Bundle, save
from didi.models.esm2 import Esm2, Esm2Config


@pytest.fixture(scope="module")
def model(randomise, tmp_path_factory):
    shape = Esm2Config(hidden_size=16, num_blocks=1, num_heads=2, length=80, inner_size=24)
    bundle = Bundle(teacher=randomise(Esm2(shape)), tokenizer=protein_tokenizer())
    return str(save(bundle, tmp_path_factory.mktemp("proteins") / "bundle"))


@pytest.mark.slow
def test_fasta_and_json_lines_hold_the_same_samples(model, tmp_path, capsys):
    flags = ["--model", model, "--num-samples", "5", "--nfe", "2", "--length", "3", "70", "--seed", "4"]
    run_generate([*flags, "--format", "fasta"])
    written = capsys.readouterr().out
    assert max(len(line) for line in written.splitlines() if not line.startswith(">")) == 60
    (tmp_path / "samples.fasta").write_text(written)
    records = list(read_fasta(tmp_path / "samples.fasta"))
    assert [len(record.residues) for record in records] == [3, 70, 3, 70, 3]
    assert records[1].title == f"sample-2 model={model} sampler=ancestral nfe=2 seed=4 index=1"
    run_generate([*flags, "--format", "jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == [record.residues for record in records]
    assert [line["length"] for line in lines] == [3, 70, 3, 70, 3]
    assert [len(line["tokens"]) for line in lines] == [5, 72, 5, 72, 5]
    assert {line["sampler"] for line in lines} == {"ancestral"}


def test_the_count_of_tokens_leaves_out_begin_and_end_symbols(model, capsys):
    run_generate(["--model", model, "--num-samples", "3", "--nfe", "2", "--length", "5", "7"])
    assert capsys.readouterr().err.splitlines()[-1].startswith("17 tokens in ")


def test_a_replay_has_the_largest_length_by_default(model, tmp_path, capsys):
    run_generate(["--model", model, "--nfe", "2", "--html", str(tmp_path / "a.html"), "--format", "jsonl"])
    assert len(json.loads(capsys.readouterr().out)["text"]) == 78


def test_fasta_of_text_is_refused():
    with pytest.raises(UsageError, match="--format fasta writes proteins; markov is not a protein model"):
        run_generate(["--model", "markov", "--format", "fasta"])


@pytest.fixture
def templates(tmp_path):
    file = tmp_path / "templates.fasta"
    file.write_text(">heavy|1 human\nEVQLVESGGG\nLVQPGG\n>\nMKTAYI\n")
    return str(file)


@pytest.mark.slow
def test_regions_of_a_file_are_redesigned(model, templates, tmp_path, capsys):
    flags = ["--model", model, "--proteins", templates, "--redesign", "3-4", "6:3", "--nfe", "2", "--num-samples", "2"]
    run_generate([*flags, "--format", "fasta"])
    (tmp_path / "samples.fasta").write_text(capsys.readouterr().out)
    records = list(read_fasta(tmp_path / "samples.fasta"))
    patterns = ["EV..V...SGGGLVQPGG"] * 2 + ["MK..Y..."] * 2
    assert all(map(re.fullmatch, patterns, (record.residues for record in records)))
    assert re.fullmatch(rf"sample-2 model={model} .* index=1 template=heavy\|1 sampled=3-4,6-8", records[1].title)
    assert records[2].title.endswith("index=0 template=record-2 sampled=3-4,6-8")
    run_generate([*flags, "--format", "jsonl"])
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["text"] for line in lines] == [record.residues for record in records]
    assert [(line["template"], line["sampled"], line["length"]) for line in lines[1:3]] == [
        ("heavy|1", "3-4,6-8", 18), ("record-2", "3-4,6-8", 8),
    ]  # fmt: skip
    prompt = {name: lines[3][name] for name in ("infill", "seed", "length")}
    (tmp_path / "prompts.jsonl").write_text(json.dumps(prompt))
    prompts = ["--prompts", str(tmp_path / "prompts.jsonl"), "--num-samples", "2"]
    run_generate(["--model", model, *prompts, "--nfe", "2", "--format", "jsonl"])
    assert json.loads(capsys.readouterr().out.splitlines()[1])["text"] == lines[3]["text"]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--redesign", "1"], "add --proteins FILE"),
        (["--proteins", "FILE", "--length", "9"], "leave --length out"),
        (["--proteins", "FILE", "--prefix", "MK"], "leave --prefix out"),
        (["--proteins", "FILE", "--redesign", "7-9"], "protein record-2: a region lies within the 6 residues"),
        (["--proteins", "FILE", "--redesign", "3:90"], r"protein heavy\|1: length lies in \[1, 78\]; got 105"),
        (["--proteins", "FILE", "--keep", "1-6"], "protein record-2: all residues are kept"),
        (["--proteins", "none.fasta", "--keep", "1"], "--proteins: .* none.fasta is not readable"),
        (["--proteins", "FILE", "--keep", "1", "--html", "a.html"], "leave --prompts, --proteins and --num-samples"),
        (["--proteins", "FILE", "--keep", "1", "--model", "markov"], "--proteins redesigns proteins; markov is no"),
    ],
)
def test_wrong_use_of_proteins_is_one_line(model, templates, flags, message):
    words = ["--model", model, *(templates if word == "FILE" else word for word in flags)]
    with pytest.raises(UsageError, match=message) as error:
        run_generate(words)
    assert "\n" not in str(error.value)


@pytest.mark.slow
def test_proteins_are_read_from_standard_input(model, templates, monkeypatch, capsys):
    flags = ["--model", model, "--redesign", "3-4", "--nfe", "2", "--format", "fasta", "--proteins"]
    run_generate([*flags, templates])
    expected = capsys.readouterr().out
    content = Path(templates).read_bytes().replace(b"\n", b"\r")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
    run_generate([*flags, "-"])
    assert capsys.readouterr().out == expected
    for content, message in {
        b"MKT": "--proteins: a FASTA file begins with a title line, > and a name; line 1 of standard input is none",
        b">\xff": "the text of --proteins is UTF-8; byte 1 of standard input is not",
    }.items():
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(content)))
        with pytest.raises(UsageError, match=message):
            run_generate([*flags, "-"])
    monkeypatch.setattr("sys.stdin", None)
    with pytest.raises(UsageError, match="--proteins - reads standard input, which is closed"):
        run_generate([*flags, "-"])
