"""The commands of the pages run: each command once, with few steps and samples and small networks."""

import re
import shlex
from itertools import pairwise
from pathlib import Path

import pytest

from didi.apps import cli
from didi.data import assets, mmseqs, protein
from didi.evaluation.judges import JUDGES
from didi.evaluation.protein import judges as protein_judges
from didi.models.bundle import load

from .docs_pages import PAGES, ROOT, START, USAGE, commands
from .docs_stand_ins import TextJudge, place

NOT_RUN = {
    r"OWNER/|convert (gpt2|esm2|dplm|antiberty) |assets fetch": "a package registry or the Hub",
    r"\bowt-": "networks of 169M and 424M parameters",
    r"torchrun": "8 processes",
    r"didi doctor": "shapes of the paper; tests/apps/test_cli.py",
    r"didi serve": "runs until it is stopped; tests/serving",
    r"didi reproduce .*--scale (?!proteins)": "a whole scale; tests/apps/test_reproduce.py",
    r"runs/kd|--sampler .*even": "code that the page adds; tests/test_docs_method.py, tests/test_docs_sampler.py",
    r"--loop.loggers|--lora-rank": "an extra; tests/apps/test_extras.py",
}
"""Patterns of the commands that are not run, with what they need or do, and where they are tested instead."""
SMALL = "--network.hidden-size 32 --network.num-blocks 1 --network.num-heads 2"
SHORTER = {
    r" +#.*": "",
    r" --max-(minutes|passes|steps) \S+": "",
    r" --loop.compile": "",  # takes a minute; tests/training/test_pretrain.py runs it
    r"--loop\.batch-size \d+": "--loop.batch-size 4",
    r"--discriminator\.(warmup|guidance)-steps \d+": r"--discriminator.\1-steps 2",
    # Settings that the page does not have come first, so that those of the page replace them.
    r"^didi (pretrain|distill) \S+": r"\g<0> --max-steps 2 --loop.batch-size 4 --loop.validation-sequences 4",
    r"^didi (pretrain|distill) (swissprot|antibody)(?!.*--data\.corpus)\S*": r"\g<0> --data.corpus proteins.fasta",
    r"^didi (pretrain|distill) (tiny-news|prose)(?!.*--data\.corpus)\S*": r"\g<0> --data.corpus corpus.txt",
    r"^didi pretrain (tiny-news|prose)\S*": r"\g<0> --data.vocab-size 290",
    r"^didi pretrain (tiny-news|prose|swissprot|antibody)(?!.*--start)\S*": r"\g<0> " + SMALL,
    r"--data\.vocab-size \d+": "--data.vocab-size 290",
    r" --num-samples \d\d+": "",
    r"^didi (evaluate|reproduce) .*": r"\g<0> --num-samples 8",
    r"^didi generate (?!.*--(num-samples|prompts|proteins|html))": r"\g<0>--num-samples 2 ",
    r"^didi likelihood .*": r"\g<0> --num-draws 1 --num-sequences 2",
    r"^didi likelihood .*tiny-news.*": r"\g<0> --data corpus.txt",
    r"^didi likelihood .*bundles/mdlm.*": r"\g<0> --data markov",
    r"--data news": "--data corpus.txt",
    r"^(didi reproduce .*--judge) \S+": r"\1 judge/bundle --workers 1",
    r"^didi reproduce (?!.*--lengths).*": r"\g<0> --lengths 60",
    r"--lengths( \d+)+": "--lengths 60",
    r"^didi reproduce (?!.*--nfe).*": r"\g<0> --nfe 2 4",
    r"--nfe( \d+){2,}": "--nfe 2 4",
    r"--nfe \d+(?! \d)": "--nfe 2",
    r"\b(student|teacher):\d+": r"\1:2",
    r"--temperature( [\d.]+){2,}": "--temperature 0.9 1",
    r"--batch-size( \d+)+": "--batch-size 2",
    r"--rounds \d+": "--rounds 1",
}
"""Replacements by pattern, one after the other."""
LARGE = r"(pretrain|distill) antibody|ancestral guided|--(joint|anchors|baseline)|reproduce|bench|evaluate .*\bexact\b"
"""Pattern of the commands that take more than 1.5 s of processor time; the others take some 40 s together."""


def lines_of(file):
    """Commands in the blocks of a page, and those in its text that name a model or a folder."""
    lines = [(line, is_in_block) for line, is_in_block in commands(file, START) if not USAGE.search(line)]
    return [line for line, is_in_block in lines if is_in_block or re.search(" --(out|model) ", line)]


def is_run(line):
    return not any(re.search(pattern, line) for pattern in NOT_RUN)


LINES, seen = {}, set()
for file in PAGES:
    if lines := [line for line in dict.fromkeys(lines_of(file)) if is_run(line) and line not in seen]:
        LINES[str(file.relative_to(ROOT))] = lines
        seen |= {*lines}
QUICK = {page: [line for line in lines if not re.search(LARGE, line)] for page, lines in LINES.items()}
QUICK = {page: lines for page, lines in QUICK.items() if lines}


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    """An empty folder and cache, judges without weights, no downloads, and clusters without mmseqs2."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIDI_CACHE", str(tmp_path / "cache"))
    for name in ("smollm2-135m", "gpt2-large"):
        monkeypatch.setitem(JUDGES, name, lambda device, name=name: TextJudge(name))
    monkeypatch.setattr(assets, "_download", lambda asset, _: pytest.fail(f"{asset.name} is from a registry"))
    monkeypatch.setattr(protein, "clusters_of", lambda proteins, identity: list(range(len(proteins))))
    monkeypatch.setattr(mmseqs, "is_available", lambda: False)


def shortened(line):
    for long, short in SHORTER.items():
        line = re.sub(long, short, line)
    return line


def run_all(lines):
    """Run commands one after the other; files that they read and no earlier command wrote are stand-ins."""
    for line in lines:
        words = [word.lower() if word in ("DIR", "FOLDER") else word for word in shlex.split(shortened(line))[1:]]
        place(words)
        cli._dispatch(words)
        for flag, path in pairwise(words):
            assert flag not in ("--out", "--html", "--gif") or Path(path).exists(), line


def test_every_reason_to_leave_out_a_command_is_needed():
    left_out = [line for file in PAGES for line in lines_of(file) if not is_run(line)]
    assert all(any(re.search(pattern, line) for line in left_out) for pattern in NOT_RUN)
    assert sum(map(len, LINES.values())) > 90


def test_judges_of_proteins_exist():
    named = [
        word
        for page in LINES.values()
        for line in page
        for word in re.findall(r"--scale proteins.* --judge (\S+)", line)
    ]
    assert named
    for name in named:
        assert name in protein_judges.JUDGES or name.startswith("runs/"), name


@pytest.mark.slow
@pytest.mark.parametrize("page", QUICK)
def test_the_quick_commands_of_a_page_run(page):
    run_all(QUICK[page])
    if "distil-your-own" in str(page):
        bundle = load("runs/student/bundle")
        assert (bundle.student.length, bundle.intended_nfe) == (64, 8)


@pytest.mark.large
@pytest.mark.parametrize("page", [page for page in LINES if LINES[page] != QUICK.get(page)])
def test_all_commands_of_a_page_run(page):
    run_all(LINES[page])
