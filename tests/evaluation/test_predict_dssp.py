"""PredictDSSP: the network, the judge, the published weights."""

import pytest
import torch

from didi.data.protein import prepare_proteins
from didi.errors import UsageError
from didi.evaluation.protein import predict_dssp
from didi.evaluation.protein.autoregressive import with_copies
from didi.evaluation.protein.controls import POLY_ALANINE, control_sets
from didi.evaluation.protein.interface import ProteinJudge, ResidueJudge
from didi.evaluation.protein.judges import check_judge, load_protein_judge
from didi.evaluation.protein.predict_dssp import DsspOrderJudge, SecondaryStructure, load_network

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "W", "ACDEFGHIKLMNPQRSTVWY", "LLLLLLLLLLLL", "GPAVIFYWLC"]


def network():
    torch.manual_seed(0)
    small = SecondaryStructure(hidden_size=6)
    for parameter in small.parameters():
        torch.nn.init.normal_(parameter)
    return small


@pytest.mark.parametrize("batch", [64, 2])
def test_probabilities_do_not_depend_on_the_other_proteins(monkeypatch, batch):
    monkeypatch.setattr(predict_dssp, "_BATCH", batch)
    small = network()
    for residues, probs in zip(SEQUENCES, small.probabilities(SEQUENCES), strict=True):
        assert probs.shape == (len(residues), 3)
        assert probs.dtype == torch.float64
        assert probs.sum(-1).tolist() == pytest.approx([1] * len(residues))
        torch.testing.assert_close(probs, small.probabilities([residues])[0], rtol=0, atol=1e-6)
    assert small.probabilities([]) == []


def test_the_score_is_the_confidence_above_that_of_shuffled_copies():
    small = network()
    judge = DsspOrderJudge(small, num_shuffles=3)
    assert isinstance(judge, ProteinJudge)
    assert isinstance(judge, ResidueJudge)
    scores = judge.score(SEQUENCES)
    assert scores.dtype == torch.float64
    for residues, score, residue_scores in zip(SEQUENCES, scores.tolist(), judge.residues(SEQUENCES, {}), strict=True):
        protein, *copies = [probs.max(-1).values for probs in small.probabilities(with_copies(residues, 3))]
        assert score == pytest.approx(float(protein.mean() - torch.stack(copies).mean()), abs=1e-6)
        torch.testing.assert_close(residue_scores.scores, protein, rtol=0, atol=1e-6)
        assert residue_scores.alpha_carbons is None
    assert abs(scores[0]) > 1e-3
    assert scores[3] == pytest.approx(0, abs=1e-6)  # a repeated residue has no other order


@pytest.mark.parametrize("wrong", ["", "MKX", "mk", "M-K"])
def test_proteins_that_the_network_does_not_read_are_refused(wrong):
    judge = DsspOrderJudge(network())
    for call in (judge.score, lambda sequences: judge.residues(sequences, {})):
        with pytest.raises(UsageError, match=f"20 standard residues; got '{wrong}': leave it out"):
            call(["MKT", wrong])


def test_the_judge_is_loaded_from_the_archive(monkeypatch, tmp_path):
    torch.manual_seed(1)
    published = SecondaryStructure()
    weights = {f"module.{name}": value for name, value in published.state_dict().items()}
    torch.save(weights, tmp_path / predict_dssp._WEIGHTS)
    monkeypatch.setattr(predict_dssp, "fetch", {"predict-dssp": tmp_path}.__getitem__)
    loaded = load_protein_judge("dssp-order")
    assert (type(loaded), loaded.name, loaded.is_higher_better) == (DsspOrderJudge, "dssp-order", True)
    torch.testing.assert_close(loaded.score(SEQUENCES), DsspOrderJudge(published).score(SEQUENCES))


@pytest.mark.network
def test_the_published_network_predicts_as_the_code_of_its_archive():
    """Expected values: ``predict_dssp`` of PredictDSSP 1.3.1 with ``raw_vals=True``."""
    published = load_network()
    assert sum(parameter.numel() for parameter in published.parameters()) == 16_763
    first, single = published.probabilities(["MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQ", "W"])
    for position, expected in {
        0: [0.03029, 0.00856, 0.96115], 16: [0.84248, 0.03281, 0.12471], 32: [0.09626, 0.4468, 0.45695],
    }.items():  # fmt: skip
        assert first[position].tolist() == pytest.approx(expected, abs=2e-5)
    assert single[0].tolist() == pytest.approx([0.04391, 0.08435, 0.87174], abs=2e-5)


@pytest.mark.network
@pytest.mark.slow
def test_the_published_network_orders_the_controls_only_relative_to_shuffled_copies():
    controls = control_sets(prepare_proteins("swissprot", min_length=50, max_length=254).test[:200])
    published = load_network()
    confidences = {
        name: float(torch.stack([row.amax(-1).mean() for row in published.probabilities(sequences)]).mean())
        for name, sequences in controls.items()
    }
    assert max(confidences, key=lambda name: confidences[name]) == POLY_ALANINE  # why the copies are subtracted
    check_judge(DsspOrderJudge(published), controls)
