import io

import pytest
import torch
from rich.console import Console

import didi
from didi.apps.live import MASK, LiveView, partly_masked


@pytest.fixture(scope="module")
def bundle():
    return didi.load("tiny-news")


def test_masks_are_drawn_one_by_one_and_new_tokens_stand_out(bundle):
    ids = bundle.tokenizer.encode(" the president said", add_special_tokens=False).ids
    z = torch.tensor([*ids, bundle.denoiser().mask_id, bundle.denoiser().mask_id])
    changed = torch.zeros(len(z), dtype=torch.bool)
    changed[0] = True
    text = partly_masked(bundle, z, changed)
    assert text.plain == " the president said" + 2 * MASK
    styled = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styled == {" the": "bold green", 2 * MASK: "dim"}


def test_words_of_a_word_level_tokenizer_stay_apart():
    markov = didi.load("markov")
    text = partly_masked(markov, torch.tensor([1, 2, 3, 32, 5]), torch.tensor([False, False, True, False, True]))
    assert text.plain == f"s1 s2 s3{MASK}s5"


def test_a_character_of_several_tokens_comes_out_whole(bundle):
    ids = torch.tensor(bundle.tokenizer.encode("語", add_special_tokens=False).ids)
    assert len(ids) > 1
    assert partly_masked(bundle, ids, torch.zeros(len(ids), dtype=torch.bool)).plain == "語"


def test_the_view_ends_with_the_finished_text(bundle, monkeypatch):
    monkeypatch.setattr("didi.apps.live.PAUSE", 0)
    screen = io.StringIO()
    with LiveView(bundle, num_shown=1, console=Console(file=screen, force_terminal=True, width=100)) as view:
        drawn = didi.generate(bundle, num_samples=2, nfe=3, length=8, batch_size=1, on_move=view)
    assert "move 3, t = 0.00" in screen.getvalue()
    assert "move 4" not in screen.getvalue()
    assert drawn.texts[-1].split()[0] in screen.getvalue()
