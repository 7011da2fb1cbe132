"""A request's sequences while they wait, run and end."""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import Any, cast

import torch
from jaxtyping import Int
from torch import Tensor

from didi.errors import DidiError
from didi.sampling.base import StepOutput
from didi.sampling.completion import Plan
from didi.sampling.memory import out_of_memory
from didi.sampling.passes import Passes, PassSampler, TokenDraw, TrunkPass


class TimedOut(DidiError):
    """A request took longer than it may."""


class Cancelled(DidiError):
    """Nobody waits for the result any more."""


@dataclass(frozen=True)
class Moved:
    """The sequences of a job after a move.

    Attributes:
        number: of the move, from 1.
        step: the move.
        network_passes: of each sequence so far.
        discriminator_passes: of each sequence so far.
        milliseconds: since the job began to run.
    """

    number: int
    step: StepOutput
    network_passes: Int[Tensor, " b"]
    discriminator_passes: Int[Tensor, " b"]
    milliseconds: float


@dataclass(eq=False)
class Job:
    """A batch of one request: the sequences that ``didi.generate`` would sample together.

    The scheduler's thread alone runs a job; other threads may only read it after ``on_end``, and call ``cancel``.

    Attributes:
        plan: what is sampled.
        on_end: called once, with the job, when it has ended.
        on_move: called after every move; None for a job of which only the end is wanted.
        deadline: time of ``time.monotonic`` at which it is given up.
        error: why it ended without a sample.
        tokens: the finished sequences, on the CPU.
        asked: the pass or the tokens that it waits for.
        shares_passes: whether its sampler asks for passes, which can then be shared.
        number: moves so far.
    """

    plan: Plan
    on_end: Callable[["Job"], None]
    on_move: Callable[[Moved], None] | None = None
    deadline: float = float("inf")
    error: Exception | None = None
    tokens: Int[Tensor, "b l"] | None = None
    asked: TrunkPass | TokenDraw | None = None
    number: int = 0
    created: float = field(default_factory=time.monotonic)
    started: float = 0.0
    ended: float = 0.0
    _is_cancelled: bool = False

    def __post_init__(self) -> None:
        none = torch.zeros(len(self.plan.canvas), dtype=torch.long)
        self.network_passes = self.discriminator_passes = none
        self.shares_passes = isinstance(self.plan.sampler, PassSampler)
        self._z = self.plan.canvas.tokens
        self._run: Passes | Generator[StepOutput, Any, None] | None = None

    def __len__(self) -> int:
        return len(self.plan.canvas)

    @property
    def has_ended(self) -> bool:
        """Whether it is finished, failed or given up."""
        return self.ended > 0

    @property
    def trunk_pass(self) -> TrunkPass | None:
        """The pass that it waits for."""
        return self.asked if isinstance(self.asked, TrunkPass) else None

    @property
    def token_draw(self) -> TokenDraw | None:
        """The tokens that it waits for."""
        return self.asked if isinstance(self.asked, TokenDraw) else None

    def cancel(self) -> None:
        """Give the job up at the next round."""
        self._is_cancelled = True

    def start(self) -> None:
        """Run up to the first pass, or not at all where the sampler makes its passes itself."""
        sampler, inputs = self.plan.sampler, (self.plan.canvas, self.plan.times, self.plan.noise)
        self.started = time.monotonic()
        if isinstance(sampler, PassSampler):
            self._run = sampler.passes(*inputs)
            self.advance(None)
        else:
            self._run = cast(Generator[StepOutput, Any, None], sampler(*inputs))

    def advance(self, answer: Tensor | None) -> None:
        """Run on: to the next request that can be shared, or by one move.

        Args:
            answer: the features or tokens that it waited for, if it waited.
        """
        assert self._run is not None
        self.asked = None
        try:
            with out_of_memory(len(self)):
                asked = self._run.send(answer)
                while isinstance(asked, StepOutput):
                    self._take(asked)
                    if not self.shares_passes:
                        return
                    asked = self._run.send(None)
            self.asked = asked
        except StopIteration:
            self._finish()
        except Exception as error:  # of this job alone; the others go on
            self.end(error)

    def check(self, now: float) -> None:
        """End a job that is cancelled or late."""
        if self._is_cancelled:
            self.end(Cancelled("the client has gone"))
        elif now > self.deadline:
            limit = self.deadline - self.created
            self.end(TimedOut(f"a request takes at most {limit:g} s here; ask for fewer moves or tokens, or try later"))

    def end(self, error: Exception | None = None) -> None:
        """End the job, without a sample where there is an error."""
        if self.has_ended:
            return
        self.ended, self.error, self.asked = time.monotonic(), error, None
        if self._run is not None:
            self._run.close()
        self.on_end(self)

    def _take(self, step: StepOutput) -> None:
        self.number, self._z = self.number + 1, step.z
        self.network_passes = self.network_passes + step.network_passes
        self.discriminator_passes = self.discriminator_passes + step.discriminator_passes
        if self.on_move is not None:
            elapsed = 1000 * (time.monotonic() - self.started)
            self.on_move(Moved(self.number, step, self.network_passes, self.discriminator_passes, elapsed))

    def _finish(self) -> None:
        try:
            if self.number:
                self.plan.check_finished(self._z)
            self.tokens = self._z.cpu()
        except Exception as error:
            self.end(error)
        else:
            self.end()
