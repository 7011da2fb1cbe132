"""Settings of a server: access, and limits on requests."""

from dataclasses import dataclass

from didi.arguments import finite_number, set_fields, whole_number
from didi.errors import UsageError

GRACE = 5
"""Seconds after ``drain`` in which running passes end and the last events of streams are sent."""


@dataclass(frozen=True)
class ServerSettings:
    """Limits and access of a server; the defaults are those of ``didi serve``.

    Attributes:
        token: bearer token that requests to ``/v1`` and ``/metrics`` need; None if they need no token.
        cors_origins: origins whose pages may read the responses.
        max_batch: largest number of sequences that run at the same time.
        max_queue: largest number of waiting jobs, one per prompt; further requests are refused with status 429.
        max_samples: largest number of sequences of a request.
        max_moves: largest number of moves of a request.
        max_tokens: largest number of positions of a sequence, prompt included; None for the context length.
        max_candidates: largest number of candidates of a move of guided sampling.
        max_prompt_characters: largest number of characters of a prompt or infill text.
        max_body_bytes: largest number of bytes of a body; larger bodies are refused with status 413.
        timeout: seconds, more than 0, that a request may take, waiting included. The body of a request must arrive, and
            the client must read each event of a stream, within the same time.
        drain: seconds, 0 or more, that running requests have to finish after a signal to stop.
        logs_prompts: whether prompts are logged.

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
            raise UsageError("a token is one or more ASCII characters, without spaces at its ends; choose another one")
        names = ("batch", "queue", "samples", "moves", "candidates", "prompt_characters", "body_bytes")
        for name in (f"max_{limit}" for limit in names):
            set_fields(self, **{name: whole_number(name, getattr(self, name), low=1)})
        if self.max_tokens is not None:
            set_fields(self, max_tokens=whole_number("max_tokens", self.max_tokens, low=1))
        for name, is_open in (("timeout", True), ("drain", False)):
            set_fields(self, **{name: finite_number(name, getattr(self, name), low=0, is_low_open=is_open)})
