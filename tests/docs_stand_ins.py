"""Small files and models that are written in place of those that the commands of a page read."""

import random
import re
from pathlib import Path

import torch
from safetensors.torch import load_file

from didi.apps.cli import _dispatch
from didi.data.fasta import fasta_record
from didi.data.protein import protein_tokenizer
from didi.diffusion.absorbing import Absorbing
from didi.evaluation.perplexity import Scores
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bert import Bert, BertConfig
from didi.models.bundle import Bundle, load, save
from didi.models.convert import BUFFERS
from didi.models.esm2 import Esm2, Esm2Config
from didi.models.proteins import RESIDUES

WORDS = ["the", "city", "of", "a", "river", "and", "its", "old", "harbour", "in", "winter", "stands"]
SHAPE = {"hidden_size": 16, "num_blocks": 4, "num_heads": 2}


class TextJudge:
    """Judge of texts whose tokens are their characters, all of the same likelihood."""

    def __init__(self, name):
        self.name = name

    def score(self, texts, tokens):
        num_tokens = torch.tensor([len(text) for text in texts])
        return Scores(num_tokens.double(), num_tokens)


def motif(length, start=0):
    """A protein with its residues in a fixed repeated order, which a small network learns."""
    return "".join(RESIDUES[(start + number) % len(RESIDUES)] for number in range(length))


def corpus(path):
    draw = random.Random(0)
    path.write_text("\n<|endoftext|>\n".join(" ".join(draw.choices(WORDS, k=120)) for _ in range(60)))


def prompts(path):
    path.write_text("The prime minister said\nThe city of [MASK] is old\n")


def templates(path):
    path.write_text(fasta_record("heavy", motif(120)))


def proteins(path):
    chains = [motif(length, start) for length in range(50, 70) for start in range(20)]
    path.write_text("".join(fasta_record(str(number), chain) for number, chain in enumerate(chains)))


def lightning(path):
    """A training checkpoint of MDLM, with the tokenizer beside it."""
    _dispatch(["convert", "export", "markov", "--out", str(path.parent / "export")])
    weights = load_file(path.parent / "export" / "model.safetensors")
    average = [value for name, value in weights.items() if not name.endswith(BUFFERS)]
    torch.save({"state_dict": weights, "ema": {"decay": 0.9999, "num_updates": 7, "shadow_params": average}}, path)


def released(path):
    """The folder of a release: a student in the layout of MDLM."""
    _dispatch(["convert", "export", "exact", "--role", "student", "--out", str(path)])


def protein_bundle(path):
    number = int(*re.findall(r"-(\d+)/", str(path)) or [0])
    torch.manual_seed(number)
    is_antibody, role = "anti" in str(path), "student" if "student" in str(path) else "teacher"
    network = Bert(BertConfig(**SHAPE)) if is_antibody else Esm2(Esm2Config(**SHAPE))
    provenance = {"corpus": "proteins.fasta", "seed": number}
    save(Bundle(**{role: network.eval()}, tokenizer=protein_tokenizer(), provenance=provenance), path)


def protein_judge(path):
    flags = "--data.corpus proteins.fasta --network.hidden-size 32 --network.num-blocks 1 --network.num-heads 2"
    _dispatch(["pretrain", "swissprot-ar", *flags.split(), "--max-steps", "100", "--out", str(path.parent)])


def baseline(path):
    """An autoregressive network with the tokenizer of tiny-news."""
    tokenizer = load("tiny-news").tokenizer
    size = tokenizer.get_vocab_size()
    network = AutoregressiveLM(AutoregressiveConfig(size, size - 1, 128, **SHAPE)).eval()
    save(Bundle(autoregressive=network, tokenizer=tokenizer, process=Absorbing(size - 1)), path)


def results(path):
    flags = "--model markov --judge markov --nfe 2 4 --num-samples 8"
    _dispatch(["evaluate", *flags.split(), "--out", str(path)])


STAND_INS = {
    r"corpus\.txt": corpus,
    r"prompts\.txt": prompts,
    r"(antibody|template)\.fasta": templates,
    r"\w+\.fasta": proteins,
    r"best\.ckpt": lightning,
    r"folder": released,
    r"(\S*/)?judge/bundle": protein_judge,
    r"\S+/(dplm|antiberty)|\S+/(dplm|proteins|antibody)\S*/bundle": protein_bundle,
    r"\S+/(gpt2-large|(baseline|tiny-news-ar)/bundle)": baseline,
    r"runs/first/bundle": lambda path: save(load("exact-8"), path),
    r"student/bundle": lambda path: save(load("markov"), path),
    r"runs/(other-)?results": results,
}
"""Functions that write what a command reads, by the pattern of its path."""


def place(words):
    """Write a stand-in for each missing file, folder or bundle that a command reads."""
    for flag, word in zip(["", *words], words, strict=False):
        makers = [make for pattern, make in STAND_INS.items() if re.fullmatch(pattern, word)]
        if makers and flag not in ("--out", "--html", "--gif") and not Path(word).exists():
            Path(word).parent.mkdir(parents=True, exist_ok=True)
            if makers[0] is protein_judge:
                place(["proteins.fasta"])
            makers[0](Path(word))
