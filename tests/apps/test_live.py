"""The live view and the progress bar of ``didi generate``."""

import io

import pytest
import torch
from rich.console import Console

import didi
from didi.apps.live import MASK, LiveView, ProgressBar, partly_masked
from didi.sampling.generate import generate_batches


@pytest.fixture(scope="module")
def bundle():
    return didi.load("tiny-news")


@pytest.mark.slow
def test_each_mask_is_shown_and_new_tokens_are_highlighted(bundle):
    ids = bundle.tokenizer.encode(" the president said", add_special_tokens=False).ids
    z = torch.tensor([*ids, bundle.denoiser().mask_id, bundle.denoiser().mask_id])
    changed = torch.zeros(len(z), dtype=torch.bool)
    changed[0] = True
    text = partly_masked(bundle, z, changed)
    assert text.plain == " the president said" + 2 * MASK
    styled = {text.plain[span.start : span.end]: span.style for span in text.spans}
    assert styled == {" the": "bold green", 2 * MASK: "dim"}


def test_words_of_a_word_level_tokenizer_are_separated_by_spaces():
    markov = didi.load("markov")
    text = partly_masked(markov, torch.tensor([1, 2, 3, 32, 5]), torch.tensor([False, False, True, False, True]))
    assert text.plain == f"s1 s2 s3{MASK}s5"


def test_a_character_of_several_tokens_is_shown_whole(bundle):
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


CURSOR_UP = "\x1b[1A"


@pytest.fixture
def terminal(monkeypatch):
    """A terminal: the text written to it, and its console."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("didi.apps.live.PAUSE", 0)
    screen = io.StringIO()
    return screen, Console(file=screen, force_terminal=True, width=100)


def output_around_results(bundle, view, screen):
    """Draw two batches and print a result after each; returns the output before, between and after the results."""
    with view:
        for _ in generate_batches(bundle, num_samples=2, nfe=2, length=8, batch_size=1, on_move=view):
            with view.paused():
                screen.write("RESULT\n")
    return screen.getvalue().split("RESULT\n")


def test_a_view_does_not_overwrite_the_results(bundle, terminal):
    screen, console = terminal
    first, second, rest = output_around_results(bundle, LiveView(bundle, console=console), screen)
    assert first.count("move 2") == second.count("move 2") > 0
    assert first.count(CURSOR_UP) == second.count(CURSOR_UP) > 0  # the cursor moves up over the lines of the view only
    assert CURSOR_UP not in second[: second.index("move 1")]
    assert not rest


def test_a_view_ends_its_last_line_where_there_is_no_terminal(bundle, monkeypatch):
    monkeypatch.setattr("didi.apps.live.PAUSE", 0)
    screen = io.StringIO()
    parts = output_around_results(bundle, LiveView(bundle, console=Console(file=screen, width=100)), screen)
    assert all(part.endswith("\u256f\n") for part in parts[:2])
    assert not parts[2]


def test_a_bar_is_not_drawn_again_after_the_last_results(bundle, terminal):
    screen, console = terminal
    first, second, rest = output_around_results(bundle, ProgressBar(2, console=console), screen)
    assert "0/2, move 2" in first
    assert "1/2, move 2" in second
    assert not rest
