"""``didi generate`` with ``--html``, ``--gif`` or ``--race``: one text of each network, recorded move by move."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, get_args

import didi
from didi.apps.live import LiveView
from didi.apps.options import sampling_options
from didi.apps.outputs import refuse_existing_file
from didi.apps.streams import json_line
from didi.arguments import one_of
from didi.errors import UsageError
from didi.evaluation.machine import machine_name
from didi.files import write_atomically
from didi.models.bundle import Bundle, Role, load
from didi.models.inference import for_inference
from didi.process_group import default_device
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import checked_lengths
from didi.sampling.registry import make_sampler, unread_settings, with_read_options
from didi.sampling.stream import num_moves
from didi.serving.animation import MAX_LANES, replay_gif
from didi.serving.page import replay_page
from didi.serving.replay import Lane, Replay, record_lane


@dataclass(frozen=True)
class Runner:
    """A network of a race, or the only one of a replay.

    Attributes:
        loaded: its bundle as it was loaded.
        bundle: its bundle prepared for inference.
        options: sampling options.
        nfe: number of moves, 1 or more; None for the default of the bundle.
    """

    loaded: Bundle
    bundle: Bundle
    options: SamplingOptions
    nfe: int | None


def run_replay(command: Any, prefix: str | None, infill: str | None) -> None:
    """Sample one text from each network, print the texts, and write the files.

    Args:
        command: flags of ``didi generate``.
        prefix: text of ``--prefix``.
        infill: text of ``--infill``.

    Raises:
        UsageError: flags contradict each other, or a file exists.
    """
    _check(command)
    runners = list(_runners(command))
    lanes = []
    for runner in runners:
        with LiveView(runner.bundle) if command.live else nullcontext() as view:
            lanes.append(
                record_lane(
                    runner.bundle,
                    nfe=runner.nfe,
                    seed=command.seed,
                    prefix=prefix,
                    infill=infill,
                    length=_length(command),
                    options=runner.options,
                    on_move=view,
                    loaded=runner.loaded,
                )
            )
    recorded = Replay(prefix if infill is None else infill, tuple(lanes), machine_name(default_device()))
    for lane in lanes:
        _print_lane(command, recorded, lane, {"prefix": prefix, "infill": infill})
    for path, content in ((command.html, replay_page), (command.gif, replay_gif)):
        if path is not None:
            write_atomically(path, content(recorded))
            print(f"replay {path}", file=sys.stderr)


def _check(command: Any) -> None:
    """Refuse, before anything is loaded, flags that a replay does not read or that contradict each other."""
    if command.prompts is not None or command.proteins is not None or command.num_samples not in (None, 1):
        raise UsageError("a replay shows one text of each network; leave --prompts, --proteins and --num-samples out")
    if len(command.length) > 1:
        raise UsageError(f"a replay shows texts of one length; got {' '.join(map(str, command.length))}: give one")
    if command.format == "fasta":
        raise UsageError("a replay prints --format text or jsonl; got fasta: choose one of them")
    if command.race and (command.role is not None or command.sampler != "default"):
        raise UsageError("--race names roles and samplers, as in student:8:guided; leave --role and --sampler out")
    if command.gif is not None and len(command.race) > MAX_LANES:
        raise UsageError(f"--gif shows at most {MAX_LANES} networks; got {len(command.race)}: use --html")
    if command.html is not None and command.html == command.gif:
        raise UsageError(f"--html and --gif are different files; got {command.html} for both")
    for flag, path in (("--html", command.html), ("--gif", command.gif)):
        refuse_existing_file(flag, path, overwrite=command.overwrite)


def _runners(command: Any) -> Iterator[Runner]:
    """The networks of the race, checked but not yet run."""
    bundle = load(command.model).to(default_device())
    if not command.race:
        options = sampling_options(
            command, bundle, sampler=command.sampler, role=command.role, is_whole_batch=command.compile
        )
        yield _checked(bundle, options, command.nfe, command)
        return
    baseline = None if command.baseline is None else load(command.baseline).to(default_device())
    lanes = []
    for entry in command.race:
        role, moves, sampler = _parts(entry)
        source = baseline if role == "autoregressive" and baseline is not None else bundle
        if role == "autoregressive" and source.autoregressive is None:
            raise UsageError(
                f"bundle {source.name} has no autoregressive network; name a bundle that has one with --baseline, or "
                "leave it out of --race"
            )
        options = sampling_options(command, source, sampler=sampler, role=role, is_whole_batch=command.compile)
        lanes.append((entry, source, options, command.nfe if moves is None else moves))
    _report_unread([(entry, unread_settings(options, source)) for entry, source, options, _ in lanes])
    for _, source, options, nfe in lanes:
        yield _checked(source, with_read_options(options, source), nfe, command)


def _report_unread(lanes: Sequence[tuple[str, Sequence[str]]]) -> None:
    """Print which entries are sampled without a setting that other entries read.

    Raises:
        UsageError: no entry reads a setting.
    """
    names = dict.fromkeys(name for _, unread in lanes for name in unread)
    for name in names:
        if all(name in unread for _, unread in lanes):
            raise UsageError(f"no entry of --race reads {name}; leave it out, or add an entry whose sampler reads it")
    for name in names:
        without = [entry for entry, unread in lanes if name in unread]
        print(
            f"{', '.join(without)}: sampled without {name}, which {'it' if len(without) == 1 else 'they'} "
            f"do{'es' if len(without) == 1 else ''} not read",
            file=sys.stderr,
        )


def _checked(loaded: Bundle, options: SamplingOptions, nfe: int | None, command: Any) -> Runner:
    """A runner, after checking that its sampler can be made, so that a race does not fail halfway."""
    bundle = for_inference(loaded, command.network, is_compiled=command.compile)
    (length,) = checked_lengths(bundle.network(options.role), _length(command))
    make_sampler(bundle, options, num_moves(bundle, nfe, length, options))
    return Runner(loaded, bundle, options, nfe)


def _length(command: Any) -> int | None:
    return command.length[0] if command.length else None


def _parts(entry: str) -> tuple[Role, int | None, str]:
    """Role, number of moves and sampler of an entry of ``--race``.

    Raises:
        UsageError: the entry has another form, or an unknown role.
    """
    role, *rest = entry.split(":")
    moves, sampler = [*rest, "", ""][:2]
    if len(rest) > 2 or (rest and not moves.isdecimal()):
        raise UsageError(f"an entry of --race is ROLE, ROLE:MOVES or ROLE:MOVES:SAMPLER; got {entry!r}")
    one_of("a role", role, get_args(Role))
    return role, int(moves) if moves else None, sampler or "default"  # type: ignore[return-value]


def _print_lane(command: Any, recorded: Replay, lane: Lane, prompt: Mapping[str, str | None]) -> None:
    """Print a finished text in the format of the command; ``prompt`` has the prefix or the infill text."""
    if command.format == "text":
        print(f"--- {lane.name}: {lane.milliseconds:,.0f} ms\n{lane.text}\n")
        return
    last = lane.moves[-1]
    print(
        json_line(
            {
                "text": lane.text,
                "seed": lane.seed,
                **{name: text for name, text in prompt.items() if text is not None},
                "network_passes": last.passes,
                "discriminator_passes": last.discriminator_passes,
                "milliseconds": lane.milliseconds,
                **lane.settings,
                "network": command.network,
                "compile": command.compile,
                "machine": recorded.machine,
                "version": didi.__version__,
            }
        )
    )
