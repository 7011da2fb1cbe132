"""Controls, measures and judges of proteins."""

import itertools
import json
import math
import random
import statistics
from pathlib import Path

import pytest
import torch

import didi
from didi.data import mmseqs
from didi.data.protein import protein_tokenizer
from didi.data.protein_batches import protein_rows
from didi.diffusion.absorbing import Absorbing
from didi.errors import DidiError, UsageError
from didi.evaluation.protein import measures
from didi.evaluation.protein.autoregressive import OrderJudge, with_copies
from didi.evaluation.protein.controls import ORDER, control_sets
from didi.evaluation.protein.esmfold import EsmFoldJudge
from didi.evaluation.protein.interface import ProteinJudge, ResidueJudge
from didi.evaluation.protein.judges import JUDGES, check_judge, comparisons, load_protein_judge
from didi.evaluation.protein.measures import (
    cluster_diversity,
    corpus_residue_entropy,
    duplicate_share,
    nearest_identities_of_sets,
    nearest_training_identities,
    pair_distances,
    residue_entropies,
    residue_frequencies,
)
from didi.evaluation.protein.row import ProteinRow, protein_row
from didi.files import json_text
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.proteins import RESIDUES

needs_mmseqs = pytest.mark.skipif(not mmseqs.is_available(), reason="the program mmseqs is not installed")


def proteins(num, seed=0):
    source = random.Random(seed)
    return ["".join(source.choices(RESIDUES, k=source.randint(30, 60))) for _ in range(num)]


@pytest.fixture(scope="module")
def natural():
    """Proteins of one repeated motif, which mutations and shuffling destroy."""
    source = random.Random(1)
    return ["".join("MKTAYIAKQR"[(start + n) % 10] for n in range(40)) for start in source.choices(range(10), k=12)]


class MotifJudge:
    """Number of intact pairs of the motif."""

    name, unit = "motif", "pairs"

    def __init__(self, *, is_higher_better=True, prefers=""):
        self.is_higher_better, self.prefers, self.num_scored = is_higher_better, prefers, 0

    def score(self, sequences):
        self.num_scored += len(sequences)
        motif = "MKTAYIAKQR" * 2
        counts = [sum(residues[n : n + 2] in motif for n in range(len(residues) - 1)) for residues in sequences]
        scores = torch.tensor(counts, dtype=torch.float64)
        scores = scores + torch.tensor(
            [100.0 if self.prefers and set(residues) == {self.prefers} else 0 for residues in sequences]
        )
        return scores if self.is_higher_better else -scores


def test_controls_have_the_lengths_of_the_natural_proteins_and_their_named_properties(natural):
    sets = control_sets(natural, seed=3)
    assert all([len(residues) for residues in sequences] == [40] * 12 for sequences in sets.values())
    assert sets["natural"] == natural
    for residues, mutated, shuffled in zip(natural, sets["mutated"], sets["shuffled"], strict=True):
        assert sum(a != b for a, b in zip(residues, mutated, strict=True)) == 8
        assert sorted(shuffled) == sorted(residues)
        assert shuffled != residues
    counts = {letter: "".join(sets["uniform"]).count(letter) for letter in RESIDUES}
    assert min(counts.values()) > 5
    assert set("".join(sets["poly-alanine"])) == {"A"}
    assert sets == control_sets(natural, seed=3)
    assert sets["mutated"] != control_sets(natural, seed=4)["mutated"]
    for wrong, problem in (([], "got none"), (["MKX", "MB"], "got the letters 'BX'")):
        with pytest.raises(UsageError, match=f"controls are made of .*; {problem}"):
            control_sets(wrong)


@pytest.mark.parametrize("is_higher_better", [True, False])
def test_a_judge_that_orders_the_controls_is_used(natural, is_higher_better):
    judge = MotifJudge(is_higher_better=is_higher_better)
    assert isinstance(judge, ProteinJudge)
    results = check_judge(judge, control_sets(natural))
    assert [(result.better, result.worse) for result in results] == list(ORDER)
    assert all(result.holds and result.interval[0] <= result.difference <= result.interval[1] for result in results)
    assert judge.num_scored == 5 * 12


def test_a_judge_that_does_not_order_the_controls_is_refused(natural):
    controls = control_sets(natural)
    with pytest.raises(DidiError, match=r"motif does not: natural is -.* pairs better than poly-alanine"):
        check_judge(MotifJudge(prefers="A"), controls)
    results = comparisons(MotifJudge(prefers="A"), controls)
    assert [result.holds for result in results] == [True, True, True, False]
    indifferent = MotifJudge()
    indifferent.score = lambda sequences: torch.randn(len(sequences), dtype=torch.float64)
    torch.manual_seed(0)
    with pytest.raises(DidiError, match="a judge orders the controls, else it is not used"):
        check_judge(indifferent, controls)
    with pytest.raises(UsageError, match="controls of 8 proteins or more; got 3"):
        check_judge(MotifJudge(), control_sets(natural[:3]))


def test_an_unknown_judge_is_refused():
    with pytest.raises(
        UsageError, match=f"a judge of proteins is one of {', '.join(JUDGES)}, or a bundle folder; got 'esmfol'"
    ):
        load_protein_judge("esmfol")


@pytest.fixture(scope="module")
def trained(natural):
    """An autoregressive network that has learned the motif."""
    torch.manual_seed(0)
    shape = AutoregressiveConfig(vocab_size=33, mask_id=32, length=60, hidden_size=16, num_blocks=1, num_heads=2)
    network, rows = AutoregressiveLM(shape), protein_rows(natural)
    optimizer = torch.optim.Adam(network.parameters(), lr=0.02)
    for _ in range(60):
        loss = network.nll(rows).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return network.eval()


@pytest.mark.slow
@torch.no_grad()
def test_the_order_judge_scores_proteins_above_their_shuffled_copies(trained, natural, tmp_path):
    judge = OrderJudge(trained, name="order")
    assert isinstance(judge, ProteinJudge)
    controls = control_sets(natural)
    assert all(each.holds for each in check_judge(judge, controls))
    scores = judge.score([*controls["natural"], *controls["poly-alanine"], "MK"])
    assert torch.equal(scores[3:4], judge.score([natural[3]]))  # independent of the other proteins
    assert not scores[len(natural) : -1].any()  # one residue repeated has one order
    # Per residue, without the begin and the end symbol.
    rows = protein_rows(["MKTAYI"])
    expected = float(trained.nll(rows)[0, 1:-1].double().mean())
    assert judge.nats(["MKTAYI", "MK", "A" * 50])[0] == pytest.approx(expected, rel=1e-5)
    copies = with_copies(natural[0], 4)
    assert len(set(copies)) == 5
    assert all(sorted(each) == sorted(natural[0]) for each in copies)
    nats = judge.nats(copies)
    assert float(scores[0]) == pytest.approx(float(nats[1:].mean() - nats[0]))
    for wrong in ("", "A" * 59):
        with pytest.raises(UsageError, match="judges proteins of 1 to 58 residues"):
            judge.score([wrong])
    bundle = Bundle(autoregressive=trained, tokenizer=protein_tokenizer(), process=Absorbing(32))
    bundle.save_pretrained(tmp_path / "judge")
    assert torch.equal(load_protein_judge(str(tmp_path / "judge")).score(natural[:2]), scores[:2])
    with pytest.raises(UsageError, match="a bundle with an autoregressive network of them"):
        load_protein_judge(str(Path(didi.__file__).parent / "bundles" / "markov"))


def test_scores_of_residues_are_log_likelihoods_given_the_residues_before_relative_to_frequencies(trained, natural):
    judge = OrderJudge(trained, name="order")
    assert isinstance(judge, ResidueJudge)
    frequencies = residue_frequencies([natural[0], "AAB"])
    sequences = ["MKTAYI", natural[0], "AB"]
    scores_of_proteins, structures = zip(*judge.residues(sequences, frequencies), strict=True)
    assert structures == (None, None, None)
    assert [len(scores) for scores in scores_of_proteins] == [6, 40, 2]
    with torch.no_grad():
        nll = trained.nll(protein_rows(["MKTAYI"]))[0, 1:-1].double()
    expected = [-float(nats) - math.log(frequencies[letter]) for nats, letter in zip(nll, "MKTAYI", strict=True)]
    assert scores_of_proteins[0].tolist() == pytest.approx(expected, rel=1e-5)
    assert float(scores_of_proteins[1].mean()) > 1  # the motif is predicted
    for wrong in ("", "A" * 59):
        with pytest.raises(UsageError, match="judges proteins of 1 to 58 residues"):
            judge.residues([wrong], frequencies)


def test_frequencies_add_one_to_the_count_of_every_letter():
    frequencies = residue_frequencies(["AAC", "A"])
    assert frequencies["A"] == pytest.approx(4 / 29)
    assert frequencies["C"] == pytest.approx(2 / 29)
    assert frequencies["X"] == frequencies["W"] == pytest.approx(1 / 29)
    assert set(RESIDUES) < set(frequencies)
    assert sum(frequencies.values()) == pytest.approx(1)


def test_entropies_and_the_share_of_duplicates_are_those_of_counts():
    assert residue_entropies(["AAAA", "AC", "ACDE"]).tolist() == pytest.approx([0, math.log(2), math.log(4)])
    assert corpus_residue_entropy(["AAAA", "CCCC"]) == pytest.approx(math.log(2))
    assert corpus_residue_entropy(["A" * 9, "C"]) == pytest.approx(-0.9 * math.log(0.9) - 0.1 * math.log(0.1))
    assert duplicate_share(["AC", "AC", "CA", "AC"]) == 0.5
    for measure in (residue_entropies, corpus_residue_entropy, duplicate_share):
        for wrong in ([], ["AC", ""]):
            with pytest.raises(UsageError, match="one protein or more"):
                measure(wrong)


def test_a_row_without_mmseqs_has_the_other_measures(natural, monkeypatch):
    monkeypatch.setenv("PATH", "")
    row = protein_row("student", natural, sampler="reparam", nfe=8, judge=MotifJudge())
    assert (row.sampler, row.nfe, row.num_sequences, row.shortest, row.longest) == ("reparam", 8, 12, 40, 40)
    assert (row.judge, row.score, row.score_ci) == ("motif", 39, (39, 39))
    assert math.isnan(row.network_passes)
    assert math.isnan(row.discriminator_passes)
    assert row.residue_entropy_ci[0] <= row.residue_entropy <= row.residue_entropy_ci[1]
    assert math.isnan(row.nearest_identity)
    assert math.isnan(row.diversity)


def test_a_row_is_read_as_it_was_written(natural):
    row = protein_row("student", natural, sampler="reparam", nfe=8, judge=MotifJudge())
    read = ProteinRow.from_record(json.loads(json_text(row.record())))
    assert repr(read) == repr(row)
    known = torch.linspace(0.2, 0.4, 12, dtype=torch.float64)
    measured = protein_row("student", natural, identities=known, training=["never read"])
    assert measured.nearest_identity == pytest.approx(0.3)
    assert measured.nearest_identity_ci[0] < 0.3 < measured.nearest_identity_ci[1]


@needs_mmseqs
@pytest.mark.slow
def test_identities_detect_training_proteins_and_diversity_counts_clusters():
    training, others = proteins(5), proteins(4, seed=8)
    identities = nearest_training_identities([training[2], others[0], training[4]], training)
    assert identities.tolist() == [1, 0, 1]
    assert cluster_diversity([*others, others[0]]) == pytest.approx(4 / 5)
    for lengths in ([60] * 8, [*range(118, 131)] * 2):  # repetitive sequences are not masked
        assert cluster_diversity(["A" * length for length in lengths]) == 1 / len(lengths)
    row = protein_row("teacher", [training[2], others[0]], training=training, has_diversity=True)
    assert (row.nearest_identity, row.diversity) == (0.5, 1)


def edit_distance(first, second):
    """Levenshtein distance by its recursion."""
    row = list(range(len(second) + 1))
    for number, letter in enumerate(first, start=1):
        above, row = row, [number]
        for column, other in enumerate(second, start=1):
            row.append(min(above[column] + 1, row[-1] + 1, above[column - 1] + (letter != other)))
    return row[-1]


@pytest.mark.parametrize("pairs_together", [4, 1000])
def test_the_mean_of_pair_distances_is_that_of_all_pairs(monkeypatch, pairs_together):
    monkeypatch.setattr(measures, "PAIRS_TOGETHER", pairs_together)
    source = random.Random(2)
    sequences = ["".join(source.choices("ACD", k=source.randint(1, 14))) for _ in range(9)]
    expected = [edit_distance(a, b) / max(len(a), len(b)) for a, b in itertools.combinations(sequences, 2)]
    assert float(pair_distances(sequences).mean()) == pytest.approx(sum(expected) / len(expected))
    assert pair_distances(["MKT", "MKT"]).tolist() == [0, 0]
    assert pair_distances(["MKT", "AAAAAA"]).tolist() == [1, 1]
    assert pair_distances(["MKT"]).isnan().all()
    with pytest.raises(UsageError, match="one protein or more"):
        pair_distances([])


@pytest.mark.slow
def test_the_spread_of_pair_distances_is_that_of_the_mean_over_pairs():
    """Over many sets, the variance of the mean distance is the mean of the variances that the values estimate."""
    source = random.Random(5)
    kinds = [proteins(1, seed=seed)[0] for seed in range(3)]  # equal or unlike, in unequal shares
    means, estimates = [], []
    for _ in range(300):
        values = pair_distances(source.choices(kinds, weights=(8, 2, 1), k=24))
        means.append(float(values.mean()))
        estimates.append(float(values.var()) / len(values))
    assert statistics.fmean(estimates) == pytest.approx(statistics.variance(means), rel=0.2)


@needs_mmseqs
@pytest.mark.slow
def test_one_search_for_several_sets_has_the_identities_of_single_searches():
    """Relatives at several distances, poly-alanine, which is masked, and a sequence that two sets share."""
    source, training = random.Random(4), proteins(300, seed=3)

    def relative(share):
        template = source.choice(training)
        return "".join(source.choice(RESIDUES) if source.random() < share else letter for letter in template)

    sets = [[relative(share) for share in (0.0, 0.1, 0.3, 0.5) * 4] for _ in range(3)]
    sets += [["A" * 50, sets[0][1]], proteins(6, seed=9)]
    together = nearest_identities_of_sets(sets, training)
    for sequences, identities in zip(sets, together, strict=True):
        assert identities.tolist() == nearest_training_identities(sequences, training).tolist()
    flat = torch.cat(together)
    assert len(flat.unique()) > 10
    assert {0.0, 1.0} <= set(flat.tolist())
    with pytest.raises(UsageError, match="one protein or more"):
        nearest_identities_of_sets([], training)


@pytest.fixture(scope="module")
def esmfold():
    """ESMFold of a tiny random network."""
    transformers = pytest.importorskip("transformers")
    structure = {"sequence_dim": 16, "pairwise_dim": 8, "ipa_dim": 4, "resnet_dim": 8, "num_heads_ipa": 2}
    structure |= {"num_qk_points": 2, "num_v_points": 2, "num_blocks": 1, "num_resnet_blocks": 1}
    trunk = {"num_blocks": 1, "sequence_state_dim": 16, "pairwise_state_dim": 8, "sequence_head_width": 8}
    trunk |= {"pairwise_head_width": 4, "position_bins": 4, "max_recycles": 1, "structure_module": structure}
    config = transformers.EsmConfig(
        vocab_size=33,
        mask_token_id=32,
        pad_token_id=1,
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        max_position_embeddings=64,
        position_embedding_type="rotary",
        is_folding_model=True,
        esmfold_config={"trunk": trunk, "fp16_esm": False, "lddt_head_hid_dim": 8},
    )
    torch.manual_seed(0)
    return transformers.EsmForProteinFolding(config)


@pytest.mark.slow
def test_esmfold_scores_each_protein_by_its_own_residues(esmfold):
    with torch.no_grad():
        for parameter in esmfold.lddt_head.parameters():
            parameter.normal_()
    sequences = ["MKTAYIAK", "ACDEFGHIKLMN", "WW"]
    judge = EsmFoldJudge(esmfold)
    together = judge.score(sequences)
    assert together.shape == (3,)
    assert ((together >= 0) & (together <= 100)).all()
    alone = torch.cat([EsmFoldJudge(esmfold, max_batch_residues=1).score([sequence]) for sequence in sequences])
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)
    assert len(set(together.tolist())) == 3
    output = esmfold.infer(sequences[0])
    exists = output["atom37_atom_exists"][0].bool()
    assert float(together[0]) == pytest.approx(100 * float(output["plddt"][0][exists].mean()), abs=1e-3)
    with pytest.raises(UsageError, match="one residue or more"):
        judge.score([""])


@pytest.mark.slow
def test_esmfold_gives_residues_their_confidence_and_their_place(esmfold, monkeypatch):
    sequences = ["MKTAYIAK", "ACDEFGHIKLMN", "WW"]
    judge = EsmFoldJudge(esmfold)
    assert isinstance(judge, ResidueJudge)
    folded, infer = [], esmfold.infer
    monkeypatch.setattr(esmfold, "infer", lambda batch: folded.extend(batch) or infer(batch))
    scored = judge.residues(sequences, {})
    assert sorted(folded) == sorted(sequences)  # each once
    for sequence, (of_residues, trace) in zip(sequences, scored, strict=True):
        output = esmfold.infer(sequence)
        exists = output["atom37_atom_exists"][0].bool()
        expected = [100 * float(plddt[there].mean()) for plddt, there in zip(output["plddt"][0], exists, strict=True)]
        assert of_residues.tolist() == pytest.approx(expected, abs=1e-3)
        pdb = esmfold.output_to_pdb(output)[0].splitlines()
        alpha = [[float(line[n : n + 8]) for n in (30, 38, 46)] for line in pdb if line[12:16].strip() == "CA"]
        torch.testing.assert_close(trace, torch.tensor(alpha).double(), rtol=1e-3, atol=2e-3)
