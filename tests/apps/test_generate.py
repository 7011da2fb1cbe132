"""``didi generate``: records that repeat a sample, prompts from files and standard input, and the output of batches."""

import io
import json
import sys
from types import SimpleNamespace

import pytest

import didi as package
from didi.apps import generate as command
from didi.apps.live import ProgressBar
from didi.diffusion.noise import derive_seed
from didi.models.digest import weights_digest
from didi.sampling.confidence import ConfidenceOrder
from didi.sampling.generate import generate_batches
from didi.sampling.guided import Guidance
from didi.sampling.prompts import Prompt
from didi.sampling.remasking import Remasking

FIELDS = {"guidance": Guidance, "order": ConfidenceOrder, "remask": Remasking}
OPTIONS = ("role", "sampler", "precision", "temperature", "top_p", "grid")
JSONL = ["generate", "--format", "jsonl", "--length", "12"]
NEWS = ["generate", "--model", "tiny-news", "--nfe", "2", "--length", "12"]


def repeated(record):
    """The tokens of a sample, drawn again from its record only."""
    bundle = package.load(record["model"])
    options = {name: record[name] for name in OPTIONS}
    options |= {name: kind(**record[name]) for name, kind in FIELDS.items() if name in record}
    options |= {"entropy_bound": record["entropy_bound"]} if "entropy_bound" in record else {}
    options |= {"times": tuple(record["times"])} if record["times"] else {}
    drawn = package.generate(
        bundle,
        num_samples=record["index"] + 1,
        nfe=record["nfe"],
        seed=record["seed"],
        length=record["length"],
        prefix=record.get("prefix"),
        infill=record.get("infill"),
        **options,
    )
    return drawn.tokens[-1].tolist()


WAYS = [
    ["--model", "markov", "--temperature", "0.7", "--top-p", "0.9", "--grid", "cosine", "--seed", "3", "--nfe", "5"],
    ["--model", "markov", "--precision", "float32", "--nfe", "3"],
    ["--model", "markov", "--sampler", "confidence", "--order.measure", "entropy", "--order.gumbel", "2", "--nfe", "3"],
    ["--model", "markov", "--sampler", "entropy-bounded", "--entropy-bound", "0.3"],
    ["--model", "markov", "--sampler", "remasking", "--remask.eta", "0.3", "--times", "1", "0.4", "0"],
    ["--model", "tiny-news", "--sampler", "guided", "--guidance.num-candidates", "2", "--nfe", "3"],
    ["--model", "tiny-news", "--role", "teacher", "--prefix", "The minister", "--nfe", "2"],
    ["--model", "tiny-news", "--infill", "The [MASK] said", "--nfe", "2"],
]


@pytest.mark.slow
@pytest.mark.parametrize("words", WAYS, ids=lambda words: " ".join(words[1:4]))
def test_a_record_is_enough_to_repeat_a_sample(didi, words):
    status, out, _ = didi(*JSONL, "--num-samples", "3", *words)
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert [record["index"] for record in records] == [0, 1, 2]
    assert repeated(records[1]) == records[1]["tokens"]
    assert repeated(records[2]) != records[1]["tokens"]


@pytest.mark.slow
def test_a_record_names_weights_and_versions(didi):
    (line,) = didi(*JSONL, "--model", "tiny-news", "--num-samples", "1", "--nfe", "1", "--sampler", "guided")[1].split(
        "\n"
    )[:-1]
    record, bundle = json.loads(line), package.load("tiny-news")
    roles = {"student": bundle.student, "discriminator": bundle.discriminator}
    assert record["weights"] == {role: weights_digest(network) for role, network in roles.items()}
    assert record["version"] == package.__version__
    assert (record["network"], record["compile"]) == ("float32", False)
    assert "torch" in record["machine"]
    plain = didi(*JSONL, "--model", "tiny-news", "--num-samples", "1", "--nfe", "1", "--network", "int8")[1]
    assert json.loads(plain)["weights"] == {"student": weights_digest(bundle.student)}  # digest of the loaded weights
    assert json.loads(plain)["network"] == "int8"


@pytest.mark.slow
def test_each_prompt_of_a_file_has_its_own_seed_and_samples(didi, tmp_path):
    file = tmp_path / "prompts.txt"
    file.write_bytes("\ufeffThe minister\r\n\r\nThe [MASK] said that\r\nA\u2028B\r\n".encode())
    words = [*JSONL, "--model", "tiny-news", "--nfe", "2", "--seed", "5"]
    status, out, _ = didi(*words, "--prompts", file, "--num-samples", "2")
    records = [json.loads(line) for line in out.split("\n")[:-1]]
    assert status == 0
    assert [record.get("prefix", record.get("infill")) for record in records[::2]] == [
        "The minister", "The [MASK] said that", "A\u2028B",
    ]  # fmt: skip
    assert [record["index"] for record in records] == [0, 1] * 3
    assert records[0]["seed"] == derive_seed(5, "prompt", "The minister", "")
    for record in records:
        assert repeated(record) == record["tokens"]
    assert didi(*words, "--prompts", file)[1].count("\n") == 3  # one for each prompt by default


@pytest.mark.slow
def test_prompts_of_json_lines_may_have_seeds(didi, tmp_path):
    file = tmp_path / "prompts"
    lines = [{"prefix": "The\nminister", "seed": 8}, {"infill": "[MASK] said"}]
    file.write_text("\n".join(map(json.dumps, lines)))
    out = didi(*JSONL, "--model", "tiny-news", "--nfe", "2", "--prompts", file)[1]
    first, second = (json.loads(line) for line in out.splitlines())
    assert (first["prefix"], first["seed"]) == ("The\nminister", 8)
    assert second["infill"] == "[MASK] said"
    assert repeated(first) == first["tokens"]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("typed", "words", "begin"),
    [
        (b"The minister\n", ["--prefix", "-"], "The minister"),
        ("The caf\u00e9\r\n".encode(), ["--prefix", "-"], "The caf\u00e9"),
        (b"The [MASK] said\n", ["--infill", "-"], "The"),
        (b"The minister\nThe president\n", ["--prompts", "-"], "The minister"),
    ],
)
def test_prompts_come_from_standard_input(didi, monkeypatch, typed, words, begin):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed), encoding="ascii"))
    status, out, _ = didi(*NEWS, "--num-samples", "1", *words)
    assert status == 0
    assert out.splitlines()[1].startswith(begin)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has none"),
        (b"\n \n", "has none"),
        (b"caf\xe9", "byte 3 of"),
        (b'{"prefix": "a"}\nb', "line 2: if the first line begins with {, each line is a JSON object; got 'b'"),
        (b'{"prefix": "a",\n"seed": 3}', "line 1: if the first line begins with {, each line is a JSON object"),
        (b"\n " + b'{"a": ' * 10**5, "line 2: if the first line begins with {"),
        (b'{"prefx": "a"}', "got 'prefx'; did you mean 'prefix'?"),
        (b'{"prefix": 1}', "line 1: prefix is of type str; got 1"),
        (b'{"prefix": "a", "seed": true}', "seed is of type int"),
        (b'{"prefix": "a"}\n{"prefix": "b", "length": 0}', "prompts, line 2: length is 1 or more; got 0"),
        (b'{"seed": 1}', "a prefix or an infill text; got seed"),
        (b"{}", "got neither"),
        (b'{"prefix": "a", "infill": "[MASK]"}', "got prefix and infill"),
        (None, "No such file or directory"),
    ],
)
def test_wrong_prompt_files_are_refused_in_one_line(didi, tmp_path, content, message):
    file = tmp_path / "prompts"
    if content is not None:
        file.write_bytes(content)
    status, out, err = didi(*NEWS, "--prompts", file)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert message in err


@pytest.mark.parametrize("flag", ["--prefix", "--infill", "--prompts"])
def test_standard_input_that_cannot_be_read_is_reported_with_its_flag(didi, monkeypatch, flag):
    class Unreadable(io.RawIOBase):
        def read(self, *_):
            raise OSError(21, "Is a directory")

    streams = {
        f"the text of {flag} is UTF-8; byte 3 of standard input is not": io.TextIOWrapper(io.BytesIO(b"caf\xe9")),
        f"{flag} reads a file or standard input; standard input cannot be read: Is a dir": SimpleNamespace(
            buffer=Unreadable()
        ),
        f"{flag} - reads standard input, which is closed": None,
    }
    for message, stream in streams.items():
        monkeypatch.setattr(sys, "stdin", stream)
        status, out, err = didi(*NEWS, flag, "-")
        assert (status, out, err.count("\n")) == (2, "", 1)
        assert message in err


@pytest.mark.slow
def test_a_prompt_in_a_file_that_is_too_long_is_named(didi, tmp_path):
    file = tmp_path / "prompts"
    file.write_text("short\n" + "long " * 20)
    status, _, err = didi(*NEWS, "--prompts", file)
    assert (status, err.count("\n")) == (2, 1)
    assert "prompt 2 ('long long lo" in err
    file.write_text('{"prefix": "short"}\n{"prefix": "too long", "length": 9999}')
    status, _, err = didi(*NEWS, "--prompts", file)
    assert (status, err.count("\n")) == (2, 1)
    assert "prompt 2 ('too long'): length lies in [1, 128]; got 9999" in err


@pytest.mark.slow
@pytest.mark.parametrize("text", ["-dash", "--dash text", "None", "-1", "--"])
def test_a_prefix_is_any_text(didi, text):
    status, out, err = didi(*NEWS, "--num-samples", "1", "--prefix", text)
    assert status == 0, err
    assert out.splitlines()[1].startswith(text)


@pytest.mark.slow
def test_a_prefix_that_looks_like_a_flag_gets_a_hint(didi):
    status, _, err = didi(*NEWS, "--prefix", "--nfe")
    assert (status, err.count("\n")) == (2, 1)
    assert "--prefix needs a value; write one that begins with two dashes as --prefix=VALUE" in err
    assert didi(*NEWS, "--num-samples", "1", "--prefix=--nfe")[1].splitlines()[1].startswith("--nfe")


@pytest.mark.slow
def test_finished_batches_are_written_before_ctrl_c(didi, monkeypatch):
    class Stream(io.StringIO):
        flushed = ""

        def flush(self):
            self.flushed = self.getvalue()

    def interrupted(*args, **options):
        yield next(generate_batches(*args, **options))
        assert out.flushed.count("---") == 2  # the first batch, written before the next one is sampled
        raise KeyboardInterrupt

    out = Stream()
    monkeypatch.setattr(command, "generate_batches", interrupted)
    monkeypatch.setattr(sys, "stdout", out)
    status, _, err = didi(*NEWS, "--num-samples", "5", "--batch-size", "2")
    assert (status, err) == (130, "didi: interrupted\n")
    assert "--- 2 of 5" in out.flushed


@pytest.mark.slow
def test_a_terminal_shows_progress_and_results_go_to_standard_output(didi, monkeypatch):
    consoles = []

    def bar(num_sequences):
        from rich.console import Console

        consoles.append(Console(file=io.StringIO(), force_terminal=True, width=100))
        return ProgressBar(num_sequences, console=consoles[-1])

    plain = didi(*NEWS, "--num-samples", "5", "--batch-size", "2")
    monkeypatch.setattr(command, "ProgressBar", bar)
    shown = didi(*NEWS, "--num-samples", "5", "--batch-size", "2")
    assert shown[1] == plain[1]
    assert "samples" not in plain[2]
    screen = consoles[0].file.getvalue()
    assert "4/5, move" in screen
    assert "--- 1 of 5" not in screen


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (" The minister", "The minister"),
        ("ister said", "said"),
        (". The minister", "The minister"),
        ("<|endoftext|> The", "<|endoftext|> The"),
        ("minister", "minister"),
        ("", ""),
        (" ", " "),
        ("\u8a9e" * 40 + " a", "\u8a9e" * 40 + " a"),
    ],
)
def test_a_text_begins_with_a_whole_word(text, expected):
    assert command.without_cut_word(text) == expected


@pytest.mark.slow
def test_only_samples_that_begin_in_the_middle_are_trimmed(didi):
    out = didi(*NEWS, "--num-samples", "4")[1]
    texts = [block.split("\n", 1)[1] for block in out.split("--- ")[1:]]
    assert not any(text[0].isspace() for text in texts)
    given = didi(*NEWS, "--num-samples", "1", "--prefix", " ister said")[1]
    assert given.splitlines()[1].startswith(" ister said")
    markov = ["generate", "--model", "markov", "--num-samples", "1", "--length", "12"]
    assert len(didi(*markov)[1].splitlines()[1].split()) == 12
    assert not command.cuts_words(package.load("markov"))


@pytest.mark.parametrize(("words", "expected"), [([], 4), (["--role", "teacher"], 16), (["--nfe", "3"], 3)])
def test_a_student_makes_by_default_the_moves_that_it_was_trained_for(didi, words, expected):
    (line,) = didi("generate", "--model", "exact", "--num-samples", "1", "--format", "jsonl", *words)[1].splitlines()
    assert json.loads(line)["nfe"] == expected


def test_prompt_records_are_public():
    assert package.Prompt is Prompt
