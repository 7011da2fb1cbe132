"""``didi generate --html`` and ``--gif``: replays of one network, and races of several."""

import io
import json
import re
from pathlib import Path

import pytest
from PIL import Image

from didi.apps.generate import GenerateCommand
from didi.apps.replay import _runners, run_replay
from didi.data.source import MarkovSource
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle, save

MARKOV = ("generate", "--model", "markov")


@pytest.fixture(scope="module")
def baseline(tmp_path_factory):
    """A bundle whose only network is autoregressive, over the tokens of markov."""
    shape = {"vocab_size": 32, "mask_id": None, "begin_id": 0, "hidden_size": 8, "num_blocks": 1, "num_heads": 2}
    network = AutoregressiveLM(AutoregressiveConfig(length=24, **shape)).eval()
    folder = tmp_path_factory.mktemp("baseline") / "bundle"
    return save(Bundle(autoregressive=network, tokenizer=MarkovSource(8, 0).tokenizer), folder)


@pytest.mark.slow
def test_one_model_is_replayed(didi, tmp_path):
    status, out, err = didi(*MARKOV, "--nfe", 4, "--html", tmp_path / "a.html", "--gif", tmp_path / "a.gif")
    assert (status, err.count("replay ")) == (0, 2)
    assert out.startswith("--- teacher, 4 moves, ancestral: ")
    text = out.split("\n")[1]
    assert text.split()[-1] in (tmp_path / "a.html").read_text()
    with Image.open(tmp_path / "a.gif") as image:
        assert image.n_frames > 2


@pytest.mark.slow  # imports transformers
def test_a_race_has_a_lane_for_each_network(didi, baseline, tmp_path):
    words = ("--race", "teacher:4", "teacher:8:first-hitting", "autoregressive", "--baseline", baseline, "--length", 20)
    status, out, _ = didi(*MARKOV, *words, "--html", tmp_path / "a.html", "--format", "jsonl", "--prefix", "s1 s2")
    assert status == 0
    lanes = [json.loads(line) for line in out.splitlines()]
    assert [(lane["role"], lane["nfe"], lane["sampler"]) for lane in lanes] == [
        ("teacher", 4, "ancestral"),
        ("teacher", 20, "first-hitting"),
        ("autoregressive", 20, "ancestral"),
    ]
    assert lanes[2]["model"] == str(baseline)
    assert all(lane["text"].startswith("s1 s2 ") for lane in lanes)
    assert all(lane["milliseconds"] > 0 and lane["network_passes"] for lane in lanes)


def test_the_record_has_the_prompt_of_standard_input(didi, tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"s1 s2")))
    words = ("--nfe", 2, "--prefix", "-", "--html", tmp_path / "a.html", "--format", "jsonl")
    status, out, _ = didi(*MARKOV, *words)
    assert (status, json.loads(out)["prefix"]) == (0, "s1 s2")


def test_moves_of_an_entry_override_those_of_the_command():
    command = GenerateCommand("markov", race=("teacher:4", "teacher"), nfe=8)
    assert [runner.nfe for runner in _runners(command)] == [4, 8]


@pytest.mark.slow
def test_a_setting_that_one_entry_does_not_read_is_reported(didi, tmp_path):
    words = ("--race", "teacher:2:remasking", "teacher:2", "--remask.eta", "0.5", "--length", "8")
    status, _, err = didi(*MARKOV, *words, "--html", tmp_path / "a.html")
    assert status == 0
    assert "teacher:2: sampled without remask, which it does not read\n" in err
    status, _, err = didi(*MARKOV, "--race", "teacher:2", "teacher:4", *words[3:], "--html", tmp_path / "b.html")
    assert status == 2
    assert "no entry of --race reads remask; leave it out, or add an entry whose sampler reads it" in err
    assert not (tmp_path / "b.html").exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"race": ("student:x",)}, "an entry of --race is ROLE, ROLE:MOVES or ROLE:MOVES:SAMPLER; got 'student:x'"),
        ({"race": ("teacher:4:ancestral:1",)}, "an entry of --race is ROLE"),
        ({"race": ("pupil:4",)}, "a role is one of student, teacher, autoregressive; got 'pupil'"),
        ({"race": ("teacher:4:ancestal",)}, "did you mean 'ancestral'?"),
        ({"race": ("teacher:0",)}, "nfe"),
        ({"race": ("student:4",)}, "bundle markov has no student"),
        (
            {"race": ("teacher:4", "autoregressive")},
            "no autoregressive network; name a bundle that has one with --base",
        ),
        ({"race": ("teacher:4",), "role": "teacher"}, "leave --role and --sampler out"),
        ({"html": Path("x.html"), "num_samples": 2}, "leave --prompts, --proteins and --num-samples out"),
        ({"html": Path("x"), "gif": Path("x")}, "--html and --gif are different files; got x for both"),
        ({"html": Path("x.html"), "length": (4, 5)}, "a replay shows texts of one length; got 4 5"),
        ({"html": Path("x.html"), "format": "fasta"}, "prints --format text or jsonl; got fasta"),
        ({"gif": Path("x.gif"), "race": ("teacher:4",) * 4}, "--gif shows at most 3 networks; got 4"),
    ],
)
def test_flags_that_do_not_make_a_replay_are_refused(flags, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match=re.escape(message)):
        run_replay(GenerateCommand("markov", **flags), None, None)
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_a_file_is_replaced_only_with_overwrite(didi, tmp_path):
    file = tmp_path / "a.html"
    file.write_text("mine")
    status, _, err = didi(*MARKOV, "--nfe", 2, "--html", file)
    assert status == 2
    assert err == f"didi: --html takes a new file; {file} exists: add --overwrite to replace it, or choose another\n"
    assert file.read_text() == "mine"
    assert didi(*MARKOV, "--nfe", 2, "--html", file, "--overwrite")[0] == 0
    assert file.read_text() != "mine"
