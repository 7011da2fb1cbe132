"""Views of sampling in the terminal: text while it is unmasked, and a progress bar."""

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
PAUSE = 0.08  # seconds after each move, so that the moves of a small model can be seen


class LiveView:
    """A view of the first sequences of a batch after every move; a context manager, and a callback for ``generate``.

    Args:
        bundle: the sampled model, for its tokenizer and mask.
        num_shown: number of sequences on the screen.
        console: console of the view; by default on standard error, since standard output is for results.
    """

    def __init__(self, bundle: Bundle, *, num_shown: int = 2, console: Console | None = None) -> None:
        self._bundle, self._num_shown = bundle, num_shown
        self._console = console or Console(stderr=True)
        # Created anew after each pause, since rich draws a restarted Live over the printed results.
        self._live: Live | None = None

    def __enter__(self) -> "LiveView":
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    def _stop(self) -> None:
        if self._live is None:
            return
        self._live.stop()
        self._live = None
        if not self._console.is_terminal:  # rich ends the last line only on a terminal
            self._console.line()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the view, so that results can be printed below it; the next move starts it again."""
        self._stop()
        yield

    def __call__(self, move: Move) -> None:
        """Show the state after a move."""
        title = f"move {move.number}, t = {move.t:.2f}"
        tokens, is_changed, lengths = (
            values[: self._num_shown].cpu() for values in (move.tokens, move.is_changed, move.lengths)
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
    """A progress bar of sampling, if standard error is a terminal; a context manager, and a callback for ``generate``.

    Args:
        num_sequences: number of sequences to sample.
        console: console of the bar; by default on standard error.
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
        """Update the bar: all sequences of earlier batches, and a fraction 1 - t of the sequences of this batch."""
        finished = process_group().size * move.indices[0]
        fraction = process_group().size * len(move.indices) * (1 - move.t)
        self._progress.update(self._task, completed=finished + fraction, done=finished, move=move.number)
        self._progress.start()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Remove the bar, so that results can be printed in its place; the next move starts it again."""
        self._progress.stop()
        yield


def partly_masked(bundle: Bundle, z: Tensor, changed: Tensor) -> Text:
    """A state ``[l]`` as text, with dim masks and bright changed tokens.

    A run of visible tokens is decoded from its start, since a character may consist of several tokens and the space
    before a word depends on the token before it.
    """
    mask_id = -1 if bundle.process.mask_id is None else bundle.process.mask_id
    kinds = torch.where(z == mask_id, 0, 1 + changed.long()).tolist()
    text, begin = Text(), 0
    run, decoded = 0, ""  # start of the current run of visible tokens, and its text so far
    for end in range(1, len(kinds) + 1):
        if end < len(kinds) and kinds[end] == kinds[begin]:
            continue
        if kinds[begin] == 0:
            text.append(MASK * (end - begin), style=MASKED)
            run, decoded = end, ""
        else:
            (whole,) = decode(bundle, z[None, run:end])
            text.append(whole[len(decoded) :], style=CHANGED if kinds[begin] == 2 else "")
            decoded = whole
        begin = end
    return text
