"""Redesign of proteins: kept residues stay, sampled ones follow the conditional distribution of the teacher."""

import re
from collections import Counter

import pytest
import torch

from didi.data.protein import protein_tokenizer
from didi.errors import UsageError
from didi.models.bundle import Bundle
from didi.models.esm2 import Esm2, Esm2Config
from didi.models.proteins import MASK_ID
from didi.sampling.generate import generate
from didi.sampling.prompts import Prompt
from didi.sampling.redesign import Region, parse_region, redesign_prompt, sampled_positions

PROTEIN = "MKTAYIAKQRQISFVKSHFS"
SHAPE = Esm2Config(hidden_size=16, num_blocks=1, num_heads=2, length=40, inner_size=24)


@pytest.fixture(scope="module")
def bundle(randomise, make_discriminator):
    teacher = randomise(Esm2(SHAPE), seed=5, scale=1.5)
    return Bundle(teacher=teacher, discriminator=make_discriminator(teacher), tokenizer=protein_tokenizer())


class Family(Esm2):
    """The exact denoiser of a distribution over a few proteins: logits are the logs of the posteriors."""

    def __init__(self, members):
        super().__init__(SHAPE)
        vocab = protein_tokenizer().get_vocab()
        self.register_buffer("ids", torch.tensor([[vocab[letter] for letter in member] for member in members]))
        self.register_buffer("weights", torch.tensor(list(members.values()), dtype=torch.float64))

    def features(self, inputs, sigma=None, attention_mask=None):
        inner = inputs[:, 1 : self.ids.shape[1] + 1]
        fits = ((inner[:, None] == self.ids) | (inner[:, None] == MASK_ID)).all(-1)
        probs = torch.zeros(*inputs.shape, self.vocab_size, dtype=torch.float64)
        one_hot = torch.nn.functional.one_hot(self.ids, self.vocab_size).double()
        probs[:, 1 : inner.shape[1] + 1] = torch.einsum("bm,mlv->blv", fits * self.weights, one_hot)
        return probs.log()

    def head(self, features):
        return features


FAMILY = {"MKTAYI": 0.3, "MKCWYI": 0.1, "MRTWYI": 0.15, "MKTAFI": 0.2, "MKCAYV": 0.25}


@pytest.mark.slow
def test_sampled_residues_follow_the_conditional_distribution_of_the_teacher(chi_square):
    bundle = Bundle(teacher=Family(FAMILY).eval(), tokenizer=protein_tokenizer())
    prompt = redesign_prompt("MKWWYI", redesign=["3-4"])
    drawn = generate(bundle, prompts=[prompt], num_samples=2000, sampler="first-hitting", batch_size=500).texts
    # Two proteins of the family have the kept residues MK..YI.
    fitting = {protein: weight for protein, weight in FAMILY.items() if re.fullmatch("MK..YI", protein)}
    assert fitting == {"MKTAYI": 0.3, "MKCWYI": 0.1}
    counts = Counter(drawn)
    assert set(counts) == set(fitting)
    draws = torch.tensor([list(fitting).index(protein) for protein in drawn])
    assert chi_square(draws, torch.tensor([0.75, 0.25], dtype=torch.float64)) > 1e-3
    # Two regions at once, residues 2 and 5 to 6: M.TA.. leaves MKTAYI with weight 0.3 and MKTAFI with 0.2.
    drawn = generate(
        bundle,
        prompts=[redesign_prompt("MATAAA", redesign=["2", "5-6"])],
        num_samples=2000,
        sampler="first-hitting",
        batch_size=500,
    ).texts
    assert set(drawn) == {"MKTAYI", "MKTAFI"}
    assert Counter(drawn)["MKTAYI"] / 2000 == pytest.approx(0.6, abs=0.04)


@pytest.mark.parametrize("sampler", ["ancestral", "reparam", "guided", "first-hitting", "confidence", "remasking"])
def test_kept_residues_never_change(bundle, sampler):
    prompts = [
        redesign_prompt(PROTEIN, redesign=["3-5", "9"]),
        redesign_prompt(PROTEIN, keep=["4-6", "10"]),
        redesign_prompt(PROTEIN, redesign=["3-5:9", "18-20:1"]),
        redesign_prompt("XMKXX"),
    ]
    drawn = generate(bundle, prompts=prompts, num_samples=6, nfe=3, sampler=sampler)
    patterns = ["MK...IAK.RQISFVKSHFS", "...AYI...R..........", "MK.........IAKQRQISFVKS.", ".MK.."]
    for number, pattern in enumerate(patterns):
        texts = drawn.texts[6 * number : 6 * number + 6]
        assert all(re.fullmatch(pattern, text) for text in texts), pattern
        assert len(set(texts)) > 1
    alone = generate(bundle, prompts=prompts[2:3], num_samples=6, nfe=3, sampler=sampler)
    assert alone.texts == drawn.texts[12:18]  # other prompts of the batch change its padding only


def test_proteins_that_share_the_kept_residues_have_different_samples(bundle):
    first, second = (redesign_prompt(text, redesign=["3-5"]) for text in ("MKTAYIAKQR", "MKWWWIAKQR"))
    assert first.infill == second.infill
    assert len({prompt.own_seed(seed) for prompt in (first, second) for seed in (0, 1)}) == 4
    drawn = generate(bundle, prompts=[first, second, first], num_samples=6, nfe=3).texts
    assert drawn[:6] == drawn[12:] != drawn[6:12]
    recorded = Prompt(infill=second.infill, seed=second.own_seed(0), length=10)  # as in a line of the JSON output
    assert generate(bundle, prompts=[recorded], num_samples=6, nfe=3, seed=5).texts == drawn[6:12]


def test_a_prompt_has_the_length_and_the_positions_of_its_regions():
    prompt = redesign_prompt(PROTEIN, redesign=["18-20:1", "3-5:9"], seed=4)
    assert (prompt.length, prompt.seed, sampled_positions(prompt)) == (20 + 6 - 2, 4, "3-11,24")
    assert prompt.infill == "MK" + "[MASK]" * 9 + "IAKQRQISFVKS[MASK]"
    assert sampled_positions(redesign_prompt(PROTEIN, keep=["1-4", "6-19"])) == "5,20"
    assert sampled_positions(redesign_prompt("XMKXX", redesign=["2"])) == "1-2,4-5"
    assert redesign_prompt(PROTEIN, redesign="3-5") == redesign_prompt(PROTEIN, redesign=["3-5"])
    assert parse_region("7") == Region(7, 7)
    assert parse_region("7-9:2") == Region(7, 9, 2)
    assert parse_region("7:2") == Region(7, 7, 2)


@pytest.mark.parametrize("text", ["", "a", "5-", "-5", "0", "0-3", "5-4", "3-5:0", "3:5:7", "1.5", "٣"])
def test_a_region_of_another_form_is_refused(text):
    with pytest.raises(
        UsageError,
        match="a region is FIRST-LAST, POSITION, FIRST-LAST:N or POSITION:N, such as 31-35, 40, 95-102:12 or 6:3; got",
    ):
        parse_region(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "a protein has a residue to sample; give regions, or write X"),
        ({"redesign": ["1"], "keep": ["2"]}, "to redesign or regions to keep, not both"),
        ({"redesign": ["18-21"]}, "within the 20 residues of the protein; got 18-21"),
        ({"redesign": ["3-5", "5-7"]}, "regions do not overlap; residue 5 is in two of them"),
        ({"keep": ["3-5:4"]}, "a region that is kept keeps its number of residues"),
        ({"keep": ["1-20"]}, "all residues are kept, so that none is sampled: keep fewer"),
        ({"residues": "MKBA", "redesign": ["1"]}, "one of ACDEFGHIKLMNPQRSTVWY; residue 3 of the sample would be 'B'"),
    ],
)
def test_regions_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(UsageError, match=message):
        redesign_prompt(**({"residues": PROTEIN} | arguments))


def test_the_length_of_one_prompt_does_not_change_the_samples_of_others(bundle):
    texts = generate(bundle, prompts=[Prompt(prefix="MK", length=4), "AC"], length=[7, 9], num_samples=3, nfe=2).texts
    assert [len(text) for text in texts] == [4, 4, 4, 7, 9, 7]
    assert texts[3:] == generate(bundle, prompts=["AC"], length=[7, 9], num_samples=3, nfe=2).texts
    for length, message in ((39, r"length lies in \[1, 38\]; got 39"), (1, "a prompt has at most 1 tokens here")):
        with pytest.raises(UsageError, match=message):
            generate(bundle, prompts=[Prompt(prefix="MK", length=length)])
    with pytest.raises(UsageError, match="length is 1 or more; got 0"):
        Prompt(prefix="MK", length=0)
