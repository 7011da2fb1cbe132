"""Text as it is unmasked, and the progress of sampling, in the terminal."""

import contextlib
import time
from collections.abc import Iterator

import torch
from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.text import Text
from torch import Tensor

from didi.models.bundle import Bundle
from didi.process_group import process_group
from didi.sampling.prompt import decode
from didi.sampling.stream import Move

MASK, MASKED, CHANGED = "▒", "dim", "bold green"
PAUSE = 0.08  # seconds that a state stays at least: a small model is done before the eye has seen it


class LiveView:
    """Draws the first sequences of a batch after every move; a context manager, and a callback for ``generate``.

    Args:
        bundle: whose tokenizer and mask are used.
        num_shown: sequences on the screen.
        console: where to draw; standard error by default, since only results go to standard output.
    """

    def __init__(self, bundle: Bundle, *, num_shown: int = 2, console: Console | None = None) -> None:
        self._bundle, self._num_shown = bundle, num_shown
        self._console = console or Console(stderr=True)
        self._live: Live | None = (
            None  # a new one after each pause: rich moves a Live that is restarted over the results
        )

    def __enter__(self) -> "LiveView":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        if not self._console.is_terminal:  # rich ends the last line of a terminal alone
            self._console.line()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The view stands still, so that results can be printed under it; the next move starts it again."""
        self._stop()
        yield

    def __call__(self, move: Move) -> None:
        """Show the state after a move."""
        title = f"move {move.number}, t = {move.t:.2f}"
        tokens, is_changed, lengths = (
            one[: self._num_shown].cpu() for one in (move.tokens, move.is_changed, move.lengths)
        )
        panels = [
            Panel(partly_masked(self._bundle, z[:length], changed[:length]), title=title, title_align="left")
            for z, changed, length in zip(tokens, is_changed, lengths.tolist(), strict=True)
        ]
        if self._live is None:
            self._live = Live(console=self._console, auto_refresh=False)
            self._live.start()
        self._live.update(Group(*panels), refresh=True)
        time.sleep(PAUSE)


class ProgressBar:
    """A bar of the moves of a sample set, where standard error is a terminal; a context manager and a callback.

    Args:
        num_sequences: sequences of the set.
        console: where to draw; standard error by default.
    """

    def __init__(self, num_sequences: int, *, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._progress = Progress(
            TextColumn("samples"),
            BarColumn(),
            TextColumn("{task.fields[done]}/{task.total:.0f}, move {task.fields[move]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            disable=not (self._console.is_terminal and process_group().is_main),
        )
        self._task = self._progress.add_task("", total=num_sequences, done=0, move=0)

    def __enter__(self) -> "ProgressBar":
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def __call__(self, move: Move) -> None:
        """Count a move: a batch in its move n stands for the sequences before it and a share t of its own."""
        before = process_group().size * move.indices[0]
        share = process_group().size * len(move.indices) * (1 - move.t)
        self._progress.update(self._task, completed=before + share, done=before, move=move.number)
        self._progress.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """The bar is away, so that results can be printed where it was; the next move starts it again."""
        self._progress.stop()
        yield


def partly_masked(bundle: Bundle, z: Tensor, changed: Tensor) -> Text:
    """A state ``[l]`` as text: masks dim, tokens that just appeared bright.

    Neighbours of one kind are decoded together, so that characters of several tokens come out whole, and after the
    visible tokens before them, so that words stay apart.
    """
    mask_id = -1 if bundle.process.mask_id is None else bundle.process.mask_id
    kinds = torch.where(z == mask_id, 0, 1 + changed.long()).tolist()
    text, begin, run, said = Text(), 0, 0, ""  # the visible run that we are in: where it began, what it says so far
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[begin]:
            continue
        if kinds[begin] == 0:
            text.append(MASK * (end - begin), style=MASKED)
            run, said = end, ""
        else:
            (whole,) = decode(bundle, z[None, run:end])
            text.append(whole[len(said) :], style=CHANGED if kinds[begin] == 2 else "")
            said = whole
        begin = end
    return text
