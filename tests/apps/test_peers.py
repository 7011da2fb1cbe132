"""Teachers that a study is given."""

import pytest

from didi.apps.reproduce.command import reproduce
from didi.apps.reproduce.peers import KINDS, given_peers, role_of, trained_peers
from didi.errors import UsageError


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
    found = given_peers(bundles)
    assert list(found) == names
    assert list(found.values()) == list(bundles)


def test_a_peer_is_given_once(tmp_path):
    with pytest.raises(UsageError, match="--peers names each bundle once; got tiny-news, tiny-news"):
        given_peers(["tiny-news", "tiny-news"])
    with pytest.raises(UsageError, match="leave them out"):
        reproduce(["table1", "--scale", "exact", "--peers", "tiny-news", "--out", str(tmp_path)])


@pytest.mark.parametrize("recipe", ["markov", "tiny-news"])
def test_trained_peers_differ_in_process_and_loss_alone(recipe):
    peers = trained_peers(recipe, 100)
    assert list(peers) == list(KINDS)
    configs = [one.config for one in peers.values()]
    assert {one.loop for one in configs} == {configs[0].loop}
    assert {one.data for one in configs} == {configs[0].data}
    assert {one.optimizer for one in configs} == {configs[0].optimizer}
    assert configs[0].loop.steps == 100
    assert [one.process for one in configs] == [
        "absorbing", "sedd-absorb", "sedd-uniform", "uniform", "uniform", "absorbing"
    ]  # fmt: skip
    assert configs[4].curriculum.end == 50
    assert [role_of(one) for one in peers.values()] == ["teacher"] * 5 + ["autoregressive"]
    assert role_of("tiny-news") == "teacher"
