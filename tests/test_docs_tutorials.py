"""The commands of the tutorials in their order, with few steps and samples."""

import random
import re
import shlex

import pytest

from didi.apps import cli
from didi.models.bundle import load

from .docs_pages import DOCS

pytestmark = pytest.mark.slow
SHORTER = {
    r"--max-minutes \d+": "--max-steps 2 --loop.batch-size 4",
    r"(didi distill .*)": r"\1 --discriminator.guidance-steps 2 --discriminator.warmup-steps 2",
    r"--data.vocab-size \d+": "--data.vocab-size 290",
    r"(didi evaluate .*)": r"\1 --num-samples 16",
    r"--nfe 64": "--nfe 4",
}
BLOCK = re.compile(r"^```bash\n(.*?)^```$", re.M | re.S)


def commands(page, *, without):
    """Lines of the page that begin with ``didi`` and do not contain ``without``."""
    text = "".join(BLOCK.findall((DOCS / page).read_text())).replace("\\\n", " ")
    return [line for line in text.splitlines() if line.startswith("didi ") and not re.search(without, line)]


def run(line):
    for long, short in SHORTER.items():
        line = re.sub(long, short, line)
    cli._dispatch(shlex.split(line)[1:])


def test_a_teacher_of_an_own_text_is_distilled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DIDI_CACHE", str(tmp_path / "cache"))
    words = ["the", "city", "of", "a", "river", "and", "its", "old", "harbour", "in", "winter", "stands"]
    draw = random.Random(0)
    documents = [" ".join(draw.choices(words, k=120)) for _ in range(60)]
    (tmp_path / "corpus.txt").write_text("\n<|endoftext|>\n".join(documents))
    lines = commands("distil-your-own.md", without="evaluate")  # its judge needs a package registry
    assert [line.split()[1] for line in lines] == ["pretrain", "distill", "generate", "generate"]
    for line in lines:
        run(line)
    bundle = load("runs/student/bundle")
    assert bundle.student.length == 64
    assert bundle.intended_nfe == 8
    assert (tmp_path / "race.html").is_file()


def test_a_public_checkpoint_is_converted_and_distilled(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    lines = commands("public-checkpoint.md", without="OWNER|likelihood|owt-|gpt2|reproduce")
    names = ["convert", "convert", "generate", "generate", "evaluate", "distill", "convert"]
    assert [line.split()[1] for line in lines] == names
    for line in lines:
        run(line)
    assert (tmp_path / "public-student" / "model.safetensors").is_file()
