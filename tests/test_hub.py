"""Without a network, a look-up of a name of the Hub fails at once, with one line, in every client."""

import sys
from types import SimpleNamespace

import pytest

from didi import hub
from didi.data.corpora import load_documents
from didi.data.text import load_tokenizer
from didi.errors import DidiError, UsageError
from didi.evaluation.judges import load_judge
from didi.evaluation.mauve import load_embedding
from didi.hub import failure_reason, hub_or_cache, is_reachable
from didi.models.bundle import load
from didi.models.foreign import read_checkpoint


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """Simulate a missing network; a request, or a wait between requests, fails the test."""
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "is_reachable", lambda: False)

    def refuse(*_, **__):
        raise AssertionError("a client waited to try again")

    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", refuse)
    yield
    assert constants.HF_HUB_OFFLINE is False


LOOKUPS = {
    "judge": load_judge,
    "embedding": load_embedding,
    "tokenizer": load_tokenizer,
    "bundle": load,
    "checkpoint": read_checkpoint,
    "corpus": load_documents,
}


@pytest.mark.parametrize("look_up", LOOKUPS.values(), ids=LOOKUPS)
def test_a_hub_name_without_network_fails_at_once_in_one_line(offline, look_up):
    if look_up is load_documents:
        pytest.importorskip("datasets")
    with pytest.raises(
        DidiError, match="the Hub is not reachable, and the local cache does not have the file"
    ) as caught:
        look_up("no-such-owner/no-such-name")
    assert not isinstance(caught.value, UsageError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("look_up", "known"),
    [(load_judge, "'markov', 'exact', 'smollm2-135m', 'gemma3-270m'"), (load_embedding, "'embedder'")],
)
def test_an_unknown_name_without_network_is_answered_with_those_that_exist(offline, look_up, known):
    with pytest.raises(UsageError, match=f"^no .* 'no-such-model': known are {known}, a folder .* is not reachable"):
        look_up("no-such-model")


def test_other_errors_keep_their_messages(offline, monkeypatch):
    class Damaged:
        @staticmethod
        def from_pretrained(_):
            raise ValueError("the header is damaged\nsecond line")

    monkeypatch.setattr("transformers.AutoModelForCausalLM", Damaged)
    with pytest.raises(DidiError, match=r"judge 'owner/name' could not be loaded: the header is damaged$"):
        load_judge("owner/name")


def test_a_folder_is_not_looked_up(monkeypatch, tmp_path):
    monkeypatch.setattr(hub, "is_reachable", lambda: pytest.fail("the Hub was asked"))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(DidiError, match="could not be loaded"):
        load_judge(str(tmp_path))


@pytest.mark.parametrize(("answer", "expected"), [(None, True), (ConnectionError("no route"), False)])
def test_one_short_request_decides_whether_the_hub_is_reachable(monkeypatch, answer, expected):
    requests = []

    def head(url, *, timeout):
        requests.append((url, timeout))
        if answer is not None:
            raise answer

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    monkeypatch.setattr("huggingface_hub.utils.get_session", lambda: SimpleNamespace(head=head))
    assert is_reachable() is expected
    ((url, timeout),) = requests
    assert url.startswith("https://")
    assert timeout <= 5
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert not is_reachable()
    assert len(requests) == 1


def test_a_reachable_hub_is_used_as_usual(monkeypatch):
    constants = sys.modules["huggingface_hub.constants"]
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    with hub_or_cache() as is_reached:
        assert is_reached
        assert constants.HF_HUB_OFFLINE is False
    assert failure_reason(ConnectionError("first\nsecond"), is_reached=True) == "first"
    assert failure_reason(ConnectionError(""), is_reached=True) == "ConnectionError"
