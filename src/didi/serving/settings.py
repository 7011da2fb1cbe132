"""Settings of a server: where it listens, who may use it, and what a request may ask for."""

from dataclasses import dataclass

from didi.arguments import finite_number, set_fields, whole_number
from didi.errors import UsageError

GRACE = 5
"""Seconds after the drain in which a pass may end and the last events of streams may be sent."""


@dataclass(frozen=True)
class ServerSettings:
    """Limits and access of a server; the defaults are those of ``didi serve``.

    Attributes:
        token: bearer token that requests to ``/v1`` and ``/metrics`` need; None for none.
        cors_origins: origins whose pages may read the answers; none by default.
        max_batch: sequences that run at the same time.
        max_queue: requests that may wait; more are refused with status 429.
        max_samples: sequences of a request.
        max_moves: moves of a request.
        max_tokens: positions of a sequence, the prompt's included; None is the context length of the network.
        max_candidates: candidates of a move of guided sampling.
        max_prompt_characters: characters of a prompt or infill text.
        max_body_bytes: bytes of a request's body; more are refused with status 413.
        timeout: seconds that a request may take, waiting included; also those that its body may take to arrive, and
            each part of a stream to be read.
        drain: seconds that running requests have to finish after a signal to stop.
        logs_prompts: whether prompts and texts are logged.

    Raises:
        UsageError: a value is out of range.
    """

    token: str | None = None
    cors_origins: tuple[str, ...] = ()
    max_batch: int = 64
    max_queue: int = 256
    max_samples: int = 32
    max_moves: int = 1024
    max_tokens: int | None = None
    max_candidates: int = 16
    max_prompt_characters: int = 65_536
    max_body_bytes: int = 2**20
    timeout: float = 120.0
    drain: float = 30.0
    logs_prompts: bool = False

    def __post_init__(self) -> None:
        if self.token is not None and not (self.token.isascii() and self.token.strip() == self.token != ""):
            raise UsageError("a token is one or more ASCII characters without space at its ends; choose another")
        names = ("batch", "queue", "samples", "moves", "candidates", "prompt_characters", "body_bytes")
        for name in (f"max_{one}" for one in names):
            set_fields(self, **{name: whole_number(name, getattr(self, name), low=1)})
        if self.max_tokens is not None:
            set_fields(self, max_tokens=whole_number("max_tokens", self.max_tokens, low=1))
        for name, is_open in (("timeout", True), ("drain", False)):
            set_fields(self, **{name: finite_number(name, getattr(self, name), low=0, is_low_open=is_open)})
