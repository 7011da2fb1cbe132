"""A job: the sequences of one prompt of a request, from their arrival to their end."""

import time
from collections.abc import Callable, Generator, Hashable
from dataclasses import dataclass, field
from functools import cached_property
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
    """A job took longer than its time limit."""


class Cancelled(DidiError):
    """A job was cancelled, because its client disconnected."""


@dataclass(frozen=True)
class JobMove:
    """A move of a job.

    Attributes:
        number: number of the move, from 1.
        step: the sequences after the move.
        network_passes: network passes of each sequence so far.
        discriminator_passes: discriminator passes of each sequence so far.
        milliseconds: time since the job started.
    """

    number: int
    step: StepOutput
    network_passes: Int[Tensor, " b"]
    discriminator_passes: Int[Tensor, " b"]
    milliseconds: float


@dataclass(eq=False)
class Job:
    """A batch of sequences, which ``didi.generate`` would sample together.

    The scheduler's thread runs the job. Other threads may call ``cancel`` at any time, and read the job after
    ``on_end``.

    Attributes:
        plan: the sampler and its inputs.
        on_end: called once, with the job, when it has ended; must not raise.
        on_move: called after every move; None if only the end matters.
        deadline: value of ``time.monotonic`` after which the job ends with ``TimedOut``.
        error: the cause if the job ended without a sample.
        tokens: the finished sequences, on the CPU.
        pending: the pass or the tokens that the sampler waits for.
        num_moves: moves so far.
        created: value of ``time.monotonic`` when the job was created.
        started: value of ``time.monotonic`` when the job started; 0 before.
        ended: value of ``time.monotonic`` when the job ended; 0 before.
        network_passes: network passes of each sequence so far.
        discriminator_passes: discriminator passes of each sequence so far.
        shares_passes: whether the sampler is a ``PassSampler``, whose passes can be shared.
    """

    plan: Plan
    on_end: Callable[["Job"], None]
    on_move: Callable[[JobMove], None] | None = None
    deadline: float = float("inf")
    error: Exception | None = None
    tokens: Int[Tensor, "b l"] | None = None
    pending: TrunkPass | TokenDraw | None = None
    num_moves: int = 0
    created: float = field(default_factory=time.monotonic)
    started: float = 0.0
    ended: float = 0.0
    _is_cancelled: bool = False

    def __post_init__(self) -> None:
        zeros = torch.zeros(len(self.plan.canvas), dtype=torch.long)
        self.network_passes = self.discriminator_passes = zeros
        self.shares_passes = isinstance(self.plan.sampler, PassSampler)
        self._z = self.plan.canvas.tokens
        self._run: Passes | Generator[StepOutput, Any, None] | None = None

    def __len__(self) -> int:
        return len(self.plan.canvas)

    @property
    def has_ended(self) -> bool:
        """Whether the job is finished, failed or cancelled."""
        return self.ended > 0

    @cached_property
    def network_key(self) -> Hashable:
        """Equal for jobs of ``PassSampler`` whose networks have the same weights and the same number of moves to read.

        Cached, because the first parameter of a network is found slowly.
        """
        network: Any = self.plan.sampler.denoiser  # type: ignore[attr-defined]
        return id(next(network.parameters())), getattr(network, "budget", None)

    @property
    def trunk_pass(self) -> TrunkPass | None:
        """The pass that the sampler waits for, if any."""
        return self.pending if isinstance(self.pending, TrunkPass) else None

    @property
    def token_draw(self) -> TokenDraw | None:
        """The draw of tokens that the sampler waits for, if any."""
        return self.pending if isinstance(self.pending, TokenDraw) else None

    def cancel(self) -> None:
        """End the job with ``Cancelled`` in the next round."""
        self._is_cancelled = True

    def start(self) -> None:
        """Start the sampler; a ``PassSampler`` runs up to its first pass."""
        sampler, inputs = self.plan.sampler, (self.plan.canvas, self.plan.times, self.plan.noise)
        self.started = time.monotonic()
        if isinstance(sampler, PassSampler):
            self._run = sampler.passes(*inputs)
            self.advance(None)
        else:
            self._run = cast(Generator[StepOutput, Any, None], sampler(*inputs))

    def advance(self, answer: Tensor | None) -> None:
        """Run a ``PassSampler`` up to its next pass or draw, and another sampler by one move.

        Args:
            answer: the features or tokens of ``pending``; None if nothing is pending.
        """
        assert self._run is not None
        self.pending = None
        try:
            with out_of_memory(len(self)):
                output = self._run.send(answer)
                while isinstance(output, StepOutput):
                    self._record(output)
                    if not self.shares_passes:
                        return
                    output = self._run.send(None)
            self.pending = output
        except StopIteration:
            self._finish()
        except Exception as error:  # ends this job only
            self.end(error)

    def check(self, now: float) -> None:
        """End the job if it is cancelled or past its deadline.

        Args:
            now: value of ``time.monotonic``.
        """
        if self._is_cancelled:
            self.end(Cancelled("the client has disconnected"))
        elif now > self.deadline:
            limit = self.deadline - self.created
            self.end(TimedOut(f"a request takes at most {limit:g} s here; ask for fewer moves or tokens, or try later"))

    def end(self, error: Exception | None = None) -> None:
        """End the job; do nothing if it has ended.

        Args:
            error: the cause if there is no sample.
        """
        if self.has_ended:
            return
        self.ended, self.error, self.pending = time.monotonic(), error, None
        if self._run is not None:
            try:
                self._run.close()
            except Exception as failure:  # if it left this method, other jobs would end and the client would wait
                self.error = error or failure
        self.on_end(self)

    def _record(self, step: StepOutput) -> None:
        self.num_moves, self._z = self.num_moves + 1, step.z
        self.network_passes = self.network_passes + step.network_passes
        self.discriminator_passes = self.discriminator_passes + step.discriminator_passes
        if self.on_move is not None:
            elapsed = 1000 * (time.monotonic() - self.started)
            self.on_move(JobMove(self.num_moves, step, self.network_passes, self.discriminator_passes, elapsed))

    def _finish(self) -> None:
        try:
            if self.num_moves:
                self.plan.check_finished(self._z)
            self.tokens = self._z.cpu()
        except Exception as error:
            self.end(error)
        else:
            self.end()
