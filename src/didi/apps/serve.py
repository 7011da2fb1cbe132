"""``didi serve``: serve models over HTTP."""

import ipaddress
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from didi.apps.terminal import parse
from didi.arguments import whole_number
from didi.errors import UsageError
from didi.models.bundle import load
from didi.models.inference import for_inference
from didi.process_group import default_device
from didi.serving.settings import ServerSettings

TOKEN_VARIABLE, PORT_VARIABLE = "DIDI_SERVE_TOKEN", "DIDI_SERVE_PORT"
DEFAULT_PORT = 8000


@dataclass(frozen=True)
class ServeCommand:
    """Serve models over HTTP: completions in the format of OpenAI's API, and sequences move by move."""

    models: Annotated[
        tyro.conf.Positional[tuple[str, ...]],
        tyro.conf.arg(metavar="MODEL...", help_behavior_hint="(required)"),
    ]
    """Bundled names, bundle folders or Hub repositories; NAME=MODEL gives a name that requests use."""
    host: str = "127.0.0.1"
    """Address to listen on; an address that other machines reach, such as 0.0.0.0, needs a token."""
    port: int | None = None
    """Port to listen on; by default the value of the environment variable DIDI_SERVE_PORT, or 8000; 0 selects a free
    port, which is logged."""
    token: str | None = None
    """Bearer token that requests need. Prefer the environment variable DIDI_SERVE_TOKEN: process lists show flags."""
    cors_origins: tuple[str, ...] = ()
    """Origins whose pages may use the server (CORS), such as https://example.org; none by default."""
    network: Literal["float32", "bfloat16"] = "float32"
    """Number format of the networks' trunks; int8 is not offered, since its rounding depends on the other sequences of
    a pass."""
    max_batch: int = ServerSettings.max_batch
    """Largest number of sequences that run at the same time."""
    max_queue: int = ServerSettings.max_queue
    """Largest number of waiting prompts; further requests are refused with status 429."""
    max_samples: int = ServerSettings.max_samples
    """Largest number of sequences of a request."""
    max_moves: int = ServerSettings.max_moves
    """Largest number of sampling steps of a request."""
    max_tokens: int | None = None
    """Largest number of tokens of a sequence, its prompt included; by default the model's context length."""
    timeout: float = ServerSettings.timeout
    """Seconds that a request may take, waiting included."""
    drain: float = ServerSettings.drain
    """Seconds that running requests have to finish after SIGTERM."""
    log_prompts: bool = False
    """Write prompts to the log."""


def run_serve(args: Sequence[str]) -> None:
    """Run ``didi serve`` with the arguments after the command's name."""
    command = parse(ServeCommand, args, prog="didi serve")
    if not command.models:
        raise UsageError("didi serve MODEL...: give one model or more, such as tiny-news")
    port = _port(command.port)
    named = _named(command.models)
    from didi.serving.app import make_app
    from didi.serving.server import check_address, serve

    settings = ServerSettings(
        token=os.environ.get(TOKEN_VARIABLE) if command.token is None else command.token,
        cors_origins=command.cors_origins,
        logs_prompts=command.log_prompts,
        **{
            name: getattr(command, name)
            for name in ("max_batch", "max_queue", "max_samples", "max_moves", "max_tokens", "timeout", "drain")
        },
    )
    if settings.token is None and not _is_loopback(command.host):
        raise UsageError(
            f"--host {command.host} is open to other machines and needs a token: set {TOKEN_VARIABLE}, or use 127.0.0.1"
        )
    device = default_device()
    bundles = {name: for_inference(load(model).to(device), command.network) for name, model in named.items()}
    where = f"http://{command.host}:{port}" if port else "the address below"
    check_address(command.host, port)
    app = make_app(bundles, settings)
    print(f"didi serves {', '.join(bundles)} at {where}", file=sys.stderr)
    serve(app, settings, command.host, port)


def _port(argument: int | None) -> int:
    """The port of the argument, of the environment variable, or ``DEFAULT_PORT``.

    The health check of the Docker image reads the variable, so an argument that differs is refused.
    """
    variable, ports = os.environ.get(PORT_VARIABLE), {}
    if variable:
        number = int(variable) if variable.isdecimal() else variable
        ports[PORT_VARIABLE] = whole_number(PORT_VARIABLE, number, low=0, high=65_535)
    if argument is not None:
        ports["--port"] = whole_number("--port", argument, low=0, high=65_535)
    if len(set(ports.values())) > 1:
        raise UsageError(
            f"--port {argument} differs from {PORT_VARIABLE}={variable}: leave --port out, or set {PORT_VARIABLE} to it"
        )
    return next(iter(ports.values()), DEFAULT_PORT)


def _named(words: Sequence[str]) -> dict[str, str]:
    """Models by the names that requests use."""
    pairs = [word.partition("=")[::2] if "=" in word else (word, word) for word in words]
    named = dict(pairs)
    if empty := [word for word, (name, model) in zip(words, pairs, strict=True) if not name or not model]:
        raise UsageError(f"a model is MODEL or NAME=MODEL, neither of them empty; got {empty[0]!r}")
    if len(named) < len(pairs):
        raise UsageError(f"models have different names; got {' '.join(words)}: write NAME=MODEL for one of them")
    return named


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
