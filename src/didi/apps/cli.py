"""The command ``didi``: a table of commands whose modules are imported when they are called.

This module must not import torch, tyro, rich or numpy, so that ``didi --help`` and ``didi --version`` start fast.
"""

import pkgutil
import sys
from collections.abc import Sequence
from functools import partial

from didi.apps.terminal import run
from didi.errors import UsageError, suggestion

COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("didi.apps.demo:demo", "distil a bundled teacher for a few minutes and compare teacher and student"),
    "pretrain": ("didi.apps.train:pretrain", "pre-train a teacher of masked or uniform-state diffusion"),
    "distill": ("didi.apps.train:distill", "distil a teacher into a few-step student"),
    "generate": ("didi.apps.generate:run_generate", "write texts from a model"),
    "serve": ("didi.apps.serve:run_serve", "serve models over HTTP: completions, and sequences move by move"),
    "evaluate": ("didi.apps.evaluate:run_evaluate", "score a model's samples with a judge: metrics, table, figure"),
    "compare": (
        "didi.apps.compare:run_compare",
        "compare evaluated models: paired differences, and perplexity at equal entropy",
    ),
    "likelihood": (
        "didi.apps.likelihood:run_likelihood",
        "perplexity of held-out and zero-shot corpora under a model's networks",
    ),
    "reproduce": ("didi.apps.reproduce.command:reproduce", "make the tables and figures of the paper"),
    "bench": ("didi.apps.bench:bench", "time and memory of sampling on this machine, beside published algorithms"),
    "convert": (
        "didi.apps.convert:run_convert",
        "make bundles of public checkpoints, such as MDLM, Duo or GPT-2; export a bundle",
    ),
    "doctor": (
        "didi.apps.doctor:doctor",
        "memory, arithmetic and time that a recipe needs on a device, and whether it fits",
    ),
    "assets": ("didi.apps.assets:run_assets", "list, fetch or verify real corpora and models"),
}
"""For each command, its function as ``module:function`` and a summary.

The function takes the arguments after the command's name.
"""


RECIPE_COMMANDS = ("pretrain", "distill", "doctor")
"""Commands whose first argument is a recipe."""


def _usage() -> str:
    lines = [f"  {name:12}{summary}" for name, (_, summary) in COMMANDS.items()]
    return "\n".join([f"didi {_version()}: didi COMMAND [flags]; each command has --help", *lines])


def _version() -> str:
    from didi import __version__  # imported here since it reads the metadata of the installed distribution

    return __version__


def _dispatch(args: Sequence[str]) -> None:
    if not args or args[0] in ("--help", "-h"):
        print(_usage())
    elif args[0] == "--version":
        print(_version())
    elif args[0] in RECIPE_COMMANDS and len(args) == 1:  # before the import of torch, which takes seconds
        raise UsageError(
            f"the recipe comes first: didi {args[0]} RECIPE [flags]; didi {args[0]} --help names the recipes"
        )
    elif args[0] in COMMANDS:
        pkgutil.resolve_name(COMMANDS[args[0]][0])(args[1:])
    else:
        hint = suggestion(args[0], COMMANDS)
        raise UsageError(f"a command is one of {', '.join(COMMANDS)}; got {args[0]!r}{hint}")


def main() -> None:
    """Entry point of the console script."""
    run(partial(_dispatch, sys.argv[1:]))
