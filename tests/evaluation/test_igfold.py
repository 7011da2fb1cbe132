"""IgFold as a judge: the choice of a prediction, the inputs of the networks, and the installed package."""

import random
import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch

from didi.errors import DidiError, UsageError
from didi.evaluation.protein import igfold
from didi.evaluation.protein.controls import control_sets
from didi.evaluation.protein.igfold import IgFoldJudge, Prediction, load_igfold
from didi.evaluation.protein.interface import ResidueJudge
from didi.evaluation.protein.judges import check_judge, load_protein_judge

HEAVY = (
    "EVQLVESGGGLVQPGGSLRLSCAASGFTFSSYEMNWVRQAPGKGLEWVSYISSSGSTIYY"
    "ADSVKGRFTISRDNAKNSLYLQMNSLRAEDTAVYYCARQGESYAFDPWGQGTLVTVSS"
)


def predictions(sequence):
    """Two networks: the first has the lower mean error, the second the lower 90% quantile."""
    length = len(sequence)
    outlier = torch.zeros(length, 4)
    outlier[length // 2 :] = 8.0
    even = torch.arange(4.0).expand(length, 4) + 4 + torch.arange(length)[:, None] / length
    places = torch.arange(length * 15, dtype=torch.float32).view(length, 5, 3)
    return [Prediction(outlier, -places), Prediction(even, places)]


def test_scores_and_coordinates_are_those_of_the_prediction_with_the_lowest_quantile():
    judge = IgFoldJudge(predictions)
    assert isinstance(judge, ResidueJudge)
    (residues,) = judge.residues(["ACDE"], {})
    assert residues.scores.dtype == residues.alpha_carbons.dtype == torch.float64
    # The errors of N, alpha carbon and C are 4, 5 and 6 and increase along the chain.
    assert residues.scores.tolist() == pytest.approx([5.0, 5.25, 5.5, 5.75])
    assert residues.alpha_carbons.tolist() == [[15 * n + 3.0, 15 * n + 4.0, 15 * n + 5.0] for n in range(4)]
    assert judge.score(["ACDE", "AC"]).tolist() == pytest.approx([5.375, 5.25])
    assert judge.score([]).shape == (0,)


def test_each_chain_is_folded_once_and_alone():
    seen = []
    judge = IgFoldJudge(lambda sequence: seen.append(sequence) or predictions(sequence))
    judge.residues(["ACDE", "WW"], {})
    assert seen == ["ACDE", "WW"]
    judge.score(["ACDE"])
    assert seen == ["ACDE", "WW", "ACDE"]


@pytest.mark.parametrize("sequence", ["", "A" * 511, "ACX", "acd"])
def test_what_cannot_be_folded_is_refused_before_anything_is_folded(sequence):
    judge = IgFoldJudge(lambda _: pytest.fail("folded"))
    with pytest.raises(UsageError, match="1 to 510 residues of ACDEFGHIKLMNPQRSTVWY; got") as caught:
        judge.score(["ACDE", sequence])
    assert "\n" not in str(caught.value)


def test_a_lower_error_is_better_in_the_check_of_the_judge():
    def predict(sequence):
        wrong = torch.tensor([[float(a != b)] * 4 for a, b in zip(sequence, HEAVY, strict=True)])
        return [Prediction(wrong, torch.zeros(len(sequence), 5, 3))]

    controls = control_sets([HEAVY] * 8)
    comparisons = check_judge(IgFoldJudge(predict), controls)
    assert len(comparisons) == 4
    assert all(comparison.difference > 0 for comparison in comparisons)
    swapped = {**controls, "natural": controls["shuffled"], "shuffled": controls["natural"]}
    with pytest.raises(DidiError, match=r"igfold does not: .* Å better than"):
        check_judge(IgFoldJudge(predict), swapped)


@pytest.fixture
def package(monkeypatch, tmp_path):
    """Modules in place of the package: errors and coordinates are sums of the inputs of the networks."""

    class Runner:
        def __init__(self, *, device, checkpoint_path):
            assert (device, checkpoint_path) == ("cpu", str(tmp_path / "AntiBERTy_md_smooth"))

        def embed(self, sequences, *, return_attention):
            assert return_attention
            lengths = [len(sequence) + 2 for sequence in sequences]
            embeddings = [torch.arange(float(length)).view(length, 1).expand(length, 512) for length in lengths]
            attentions = [torch.arange(float(length)).expand(8, 8, length, length) for length in lengths]
            return embeddings, attentions

    def network(chain):
        (nodes,), (edges,) = chain.embeddings, chain.attentions
        (batch, length, width), by_column = nodes.shape, edges[:, 0, 0, 0]
        assert (batch, width) == (1, 512)
        assert edges.shape == (1, 8, 8, length, length)
        assert not torch.is_grad_enabled()
        errors = nodes[:, :, :4] + 100 * by_column[:, :, None]
        return SimpleNamespace(prmsd=errors.reshape(1, -1), coords=errors[..., None].expand(1, length, 4, 3))

    def module(name, **members):
        made = ModuleType(name)
        vars(made).update(members)
        monkeypatch.setitem(sys.modules, name, made)

    module("antiberty", AntiBERTyRunner=Runner)
    module("igfold", IgFoldInput=SimpleNamespace, __path__=[])
    module("igfold.utils", __path__=[])
    loads = {"find_weights": lambda: ["one"], "load_model": lambda file, *, device: network}
    module("igfold.utils.checkpoint", **loads)
    monkeypatch.setattr(igfold, "fetch", lambda name: {"antiberty": tmp_path}[name])


def test_the_networks_get_embeddings_without_begin_and_end_symbols(package):
    pytest.importorskip("transformers")
    (residues,) = load_protein_judge("igfold").residues(["ACD"], {})
    assert residues.scores.tolist() == [101.0, 202.0, 303.0]
    assert residues.alpha_carbons.tolist() == [[n] * 3 for n in (101.0, 202.0, 303.0)]


def test_without_the_package_the_message_names_extra_and_licence(monkeypatch):
    monkeypatch.setitem(sys.modules, "igfold", None)
    monkeypatch.setitem(sys.modules, "antiberty", ModuleType("antiberty"))
    with pytest.raises(DidiError, match=r"needs igfold, .* non-commercial use only: .*'\.\[igfold\]'") as caught:
        load_protein_judge("igfold")
    assert "\n" not in str(caught.value)


def test_weights_that_cannot_be_read_are_reported_in_one_line(package, monkeypatch):
    pytest.importorskip("transformers")

    def damaged(file, *, device):
        raise OSError("damaged\nfile")

    monkeypatch.setattr(sys.modules["igfold.utils.checkpoint"], "load_model", damaged)
    with pytest.raises(DidiError, match=r"judge 'igfold' could not be loaded: .*damaged") as caught:
        load_igfold("cpu")
    assert "\n" not in str(caught.value)


@pytest.mark.large
@pytest.mark.network
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning")
def test_the_installed_package_gives_the_same_predictions_and_prefers_a_natural_chain():
    """Its own ``embed`` folds without refinement, one network at a time."""
    pytest.importorskip("igfold")
    from antiberty import AntiBERTyRunner
    from igfold.utils.checkpoint import find_weights, load_model
    from igfold.utils.embed import embed

    judge = load_igfold("cpu")
    shuffled = "".join(random.Random(0).sample(HEAVY, len(HEAVY)))
    natural, worse = judge.residues([HEAVY, shuffled], {})
    assert natural.scores.mean() < 0.7 < 1.5 < worse.scores.mean()
    language_model = AntiBERTyRunner(
        device="cpu", checkpoint_path=str(igfold.fetch("antiberty") / "AntiBERTy_md_smooth")
    )
    with torch.no_grad():
        outputs = [embed(language_model, load_model(file), sequences={"H": HEAVY}) for file in find_weights()]
    output = min(outputs, key=lambda output: float(output.prmsd.quantile(0.9)))
    torch.testing.assert_close(natural.scores, output.prmsd[0, :, :3].double().mean(1), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(natural.alpha_carbons, output.coords[0, :, 1].double(), rtol=1e-4, atol=1e-3)
    steps = (natural.alpha_carbons[1:] - natural.alpha_carbons[:-1]).norm(dim=1)
    assert float(steps.median()) == pytest.approx(3.8, abs=0.2)  # Å between neighbouring alpha carbons
