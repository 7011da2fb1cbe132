"""The autoregressive network of a second bundle in the figures and in Table 7 of ``didi reproduce``."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from didi.apps.reproduce import command
from didi.apps.reproduce.cells import Cell, LikelihoodCell
from didi.apps.reproduce.study import Sampling, Study, measure
from didi.data.source import MarkovSource
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.models.bundle import Bundle, load, save
from didi.models.discriminator import Discriminator, num_parameters

TARGETS = ("figure1", "figure3", "table7")


@pytest.fixture(scope="module")
def network():
    shape = {"vocab_size": 32, "mask_id": None, "begin_id": 0, "hidden_size": 8, "num_blocks": 1, "num_heads": 2}
    return AutoregressiveLM(AutoregressiveConfig(length=24, **shape)).eval()


@pytest.fixture
def baseline(network, tmp_path):
    bundle = Bundle(autoregressive=network, provenance={"corpus": "markov"}, tokenizer=MarkovSource(8, 0).tokenizer)
    return str(save(bundle, tmp_path / "baseline"))


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Plans whose student is the teacher's network, with one move and few samples, for speed."""
    full, teacher = command._plan, load("markov").teacher
    student = Bundle(student=teacher, discriminator=Discriminator.from_denoiser(teacher).eval())
    distilled = str(save(replace(student, provenance={"corpus": "markov"}), tmp_path / "student"))
    monkeypatch.setattr(
        command,
        "_plan",
        lambda arguments: replace(full(arguments), nfes=(1,), more_teacher_nfes=(), distilled=distilled),
    )
    monkeypatch.setitem(command.SAMPLING, "markov", Sampling(8, "markov", likelihood_sequences=4))


def reproduce(folder, *words):
    few = ["--peers", "none", "--workers", "1", "--seeds", "1"]
    command.reproduce([*words, "--scale", "markov", "--out", str(folder), *few])
    return (folder / "report.md").read_text()


@pytest.fixture
def drawn(monkeypatch):
    """The roles in each figure that is drawn, by the name of the function that draws it."""
    seen = {}
    for name in ("perplexity_figure", "latency_figure"):

        def draw(rows, path, name=name):
            seen[name] = [row.role for row in rows]
            return path

        monkeypatch.setattr(f"didi.apps.reproduce.figures.{name}", draw)
    return seen


@pytest.mark.slow
def test_the_network_of_a_second_bundle_is_in_every_figure_and_in_table_7(quick, baseline, drawn, tmp_path):
    report = reproduce(tmp_path / "study", *TARGETS, "--baseline", baseline)
    assert all("autoregressive" in roles for roles in drawn.values())
    assert len(drawn) == 2
    assert (
        report.count(f"The autoregressive baseline is that of `{baseline}`, one pass for each of its 24 tokens.") == 2
    )
    assert report.count("The sequences of the other networks have 32 tokens") == 2
    assert re.search(r"\| autoregressive +\| ancestral +\| +24 \| +24 \|", report)
    assert "autoregressive: perplexity [95% CI]" in report
    assert f"teacher markov, baseline {baseline}; blocks of 32 (autoregressive: 24) tokens" in report


@pytest.mark.slow
@pytest.mark.parametrize("scale", ["tiny", "paper"])
def test_a_given_baseline_is_measured_for_every_figure_and_corpus(scale, baseline):
    plan = command._plan(command.ReproduceCommand(scale, Path("x"), teacher="elsewhere", baseline=baseline))
    plan = command._with_baseline(plan)
    for name in ("figure1", "figure3", "figure4"):
        assert Cell(baseline, "autoregressive", nfe=1) in command.TARGETS[name].cells(plan)
    scored = {cell for cell in command.TARGETS["table7"].cells(plan) if cell.bundle == baseline}
    assert scored == {LikelihoodCell(baseline, "autoregressive", corpus) for corpus in plan.corpora}


def test_the_network_of_the_teachers_own_bundle_is_the_baseline_where_none_is_given(network, tmp_path):
    teacher = load("markov").teacher
    network = AutoregressiveLM(replace(network.config, vocab_size=33, mask_id=32)).eval()
    own, alone = (
        str(save(Bundle(teacher=teacher, autoregressive=held), tmp_path / name))
        for name, held in (("own", network), ("alone", None))
    )
    for name, expected in ((own, own), (alone, None)):
        plan = command._plan(command.ReproduceCommand("paper", Path("x"), teacher=name))
        assert command._with_baseline(plan).baseline == expected


@pytest.mark.slow  # imports transformers
def test_a_cell_has_the_size_of_its_own_network(network, tmp_path):
    source = {"provenance": {"corpus": "markov"}, "tokenizer": MarkovSource(8, 0).tokenizer}
    bundle = str(save(Bundle(teacher=load("markov").teacher, autoregressive=network, **source), tmp_path / "both"))
    study, cells = Study(tmp_path, Sampling(4, "markov")), [Cell(bundle, "autoregressive"), Cell(bundle, "teacher")]
    measure(cells, study)
    sizes = [study.record(cell)["num_parameters"] for cell in cells]
    assert sizes == [num_parameters(network), num_parameters(load("markov").teacher)]


def test_a_bundle_that_cannot_be_a_baseline_is_refused_before_any_work(network, tmp_path):
    words = [*TARGETS, "--baseline"]
    with pytest.raises(UsageError, match=r"names a bundle with an autoregressive network; markov holds .*teacher"):
        reproduce(tmp_path / "study", *words, "markov")
    with pytest.raises(UsageError, match="got 'nowhere'"):
        reproduce(tmp_path / "study", *words, "nowhere")
    other = save(Bundle(autoregressive=network, provenance={"corpus": "news"}), tmp_path / "other")
    with pytest.raises(UsageError, match=r"is trained on its corpus; .*other is trained on news: leave it out"):
        reproduce(tmp_path / "study", *words, str(other))
    assert not (tmp_path / "study").exists()
