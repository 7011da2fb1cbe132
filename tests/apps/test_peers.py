"""Peers of a study: ``--peers`` and the peers that it trains."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from didi.apps.reproduce.command import ReproduceCommand, _plan, reproduce
from didi.apps.reproduce.peers import RECIPE_SUFFIXES, _order, named_peers, role_of, trained_peers
from didi.errors import UsageError
from didi.evaluation.likelihood import Likelihood
from didi.evaluation.zero_shot import LikelihoodRow


@pytest.mark.parametrize(
    ("bundles", "names"),
    [
        (("runs/a/bundle", "runs/b/bundle"), ["a", "b"]),
        (("runs/a", "other/a"), ["runs/a", "other/a"]),
        (("tiny-news", "runs/udlm/bundle"), ["tiny-news", "udlm"]),
        (("runs/a", "runs/a/bundle"), ["runs/a", "runs/a/bundle"]),
        ((), []),
    ],
)
def test_peers_have_the_shortest_names_that_differ(bundles, names):
    peers = named_peers(bundles)
    assert list(peers) == names
    assert list(peers.values()) == list(bundles)


def test_a_repeated_peer_and_peers_at_scale_exact_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--peers names each bundle once; got tiny-news, tiny-news"):
        named_peers(["tiny-news", "tiny-news"])
    with pytest.raises(UsageError, match="leave them out"):
        reproduce(["table1", "--scale", "exact", "--peers", "tiny-news", "--out", str(tmp_path)])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["figure3", "--scale", "tiny", "--peers", "prose"], "--peers is read by figure1 and table7; got figure3"),
        (
            ["table7", "--scale", "markov", "--peers", "tiny-news"],
            "of --scale markov are trained on its corpus; tiny-news is trained on news",
        ),
        (
            ["table7", "--scale", "tiny", "--peers", "markov"],
            "of --scale tiny are trained on its corpus; markov is trained on markov",
        ),
    ],
)
def test_peers_that_do_not_fit_are_refused_before_any_work(tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        reproduce([*words, "--out", str(tmp_path / "study")])
    assert not (tmp_path / "study").exists()


def test_peers_may_be_left_out():
    for scale, num in (("markov", 6), ("tiny", 6), ("paper", 0)):
        command = ReproduceCommand(scale, Path("x"), teacher="elsewhere")
        assert len(_plan(command).peers) == num
        assert not _plan(replace(command, peers=("none",))).peers


def row(name, corpus, perplexity):
    nats = math.log(perplexity)
    likelihood = Likelihood(
        nats=nats,
        nats_ci=(nats - 0.05, nats + 0.05),
        noise=0.0,
        num_sequences=4,
        num_tokens=8,
        num_draws=1,
        is_exact=False,
    )
    return LikelihoodRow(corpus, "teacher", 10, likelihood)


def test_the_published_order_is_counted_over_corpora():
    perplexities = {
        "MDLM": (100, 200), "SEDD absorb": (101, 400), "SEDD uniform": (500, 300), "UDLM": (300, 500),
        "Duo": (299, 501), "AR": (50, 205),
    }  # fmt: skip
    likelihoods = {
        name: {corpus: row(name, corpus, value) for corpus, value in zip(("a", "b"), values, strict=True)}
        for name, values in perplexities.items()
    }
    lines = [line for line in _order(likelihoods, ("a", "b")) if " below " in line]
    assert [[cell.strip() for cell in line.split("|")[1:5]] for line in lines] == [
        ["AR below MDLM", "1 of 2", "1 of 2", "0 of 2"],
        ["MDLM below SEDD absorb", "2 of 2", "1 of 2", "0 of 2"],
        ["SEDD absorb below Duo", "2 of 2", "2 of 2", "0 of 2"],
        ["Duo below UDLM", "1 of 2", "0 of 2", "0 of 2"],
        ["UDLM below SEDD uniform", "1 of 2", "1 of 2", "1 of 2"],
    ]


@pytest.mark.parametrize("recipe", ["markov", "tiny-news"])
def test_trained_peers_differ_in_process_and_loss_alone(recipe):
    peers = trained_peers(recipe, 100)
    assert list(peers) == list(RECIPE_SUFFIXES)
    configs = [peer.config for peer in peers.values()]
    assert {config.loop for config in configs} == {configs[0].loop}
    assert {config.data for config in configs} == {configs[0].data}
    assert {config.optimizer for config in configs} == {configs[0].optimizer}
    assert configs[0].loop.steps == 100
    assert [config.process for config in configs] == [
        "absorbing", "sedd-absorb", "sedd-uniform", "uniform", "uniform", "absorbing"
    ]  # fmt: skip
    assert configs[4].curriculum.end == 50
    assert [role_of(peer) for peer in peers.values()] == ["teacher"] * 5 + ["autoregressive"]
    assert role_of("tiny-news") == "teacher"
