"""``didi bench``: time and memory of sampling on this machine, for all methods in one run."""

import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import product
from pathlib import Path

import torch

from didi.apps.options import GuidanceFlags, guidance_from_flags
from didi.apps.outputs import refuse_existing
from didi.apps.terminal import parse
from didi.arguments import whole_number
from didi.diffusion.absorbing import Absorbing
from didi.errors import UsageError
from didi.evaluation.machine import machine_name
from didi.evaluation.speed import Method, Variant, Workload, compare, default_methods, floor_of
from didi.evaluation.speed_row import speed_table
from didi.files import json_text, output_folder, write_atomically
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role, bundled_names, load
from didi.models.discriminator import Discriminator
from didi.models.inference import Numerics
from didi.models.networks import network_of
from didi.process_group import default_device
from didi.recipes import teacher_names, teacher_process, teacher_shape
from didi.sampling.guided import Guidance
from didi.sampling.memory import check_batch
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import SAMPLERS, find_sampler


@dataclass(frozen=True)
class BenchCommand:
    """Time and memory of sampling, beside the published algorithm, bare network passes and an autoregressive model."""

    model: str
    """A recipe (random weights), a bundled name, a bundle folder or a Hub repository; see --random."""
    random: bool = False
    """Random weights in the shape of the recipe called --model, also where a bundle has that name."""
    role: Role | None = None
    """Network to time; by default the student if the bundle has one. A bundle with an autoregressive network alone is
    timed with --methods autoregressive."""
    nfe: tuple[int, ...] = (16,)
    """Numbers of moves."""
    batch_size: tuple[int, ...] = (1, 4)
    """Sequences at a time."""
    length: int | None = None
    """Positions; the model's context by default."""
    methods: tuple[Method, ...] | None = None
    """Methods to time; by default those for the model's diffusion process. 'trunk' and 'guided floor' are the bare
    network passes of masked diffusion; 'passes' are those of other processes, with the vocabulary head at every
    predicted position."""
    rounds: int = 5
    """Timed rounds, after one that warms up; all methods take part in each."""
    memory: bool = True
    """Measure peak memory too, each method in a separate process."""
    network: tuple[Numerics, ...] = ("float32",)
    """Number formats of the trunk, each timed; draws are always float64. The published algorithm and the autoregressive
    model run in the first."""
    compile: bool = False
    """Time each of these formats with torch.compile as well."""
    guidance: GuidanceFlags = field(default_factory=GuidanceFlags)
    out: Path | None = None
    """Folder for bench.json and bench.md."""
    overwrite: bool = False
    """Replace these two files in --out."""


def random_bundle(name: str) -> Bundle:
    """Networks with random weights in the shape of a pre-training recipe.

    Raises:
        UsageError: no recipe has that name.
    """
    shape = teacher_shape(name)
    torch.manual_seed(0)
    network = network_of(replace(shape, dropout=0.0)).eval()
    process = teacher_process(name)
    discriminator = Discriminator.from_denoiser(network).eval() if type(process) is Absorbing else None
    return Bundle(teacher=network, discriminator=discriminator, name=f"random {name}", process=process)


def _bundle(name: str, role: Role | None, *, is_random: bool) -> Bundle:
    """The bundle to time, with the network of ``role`` as its only denoiser; picklable, for other processes."""
    bundle = random_bundle(name) if is_random else load(name)
    if isinstance(bundle.network(role), AutoregressiveLM):
        return Bundle(autoregressive=bundle.autoregressive, name=bundle.name).to(default_device())
    return replace(bundle, student=None, teacher=bundle.denoiser(role)).to(default_device())


def _check_networks(bundle: Bundle, methods: Sequence[Method], length: int) -> None:
    """Refuse methods whose networks the bundle lacks, or whose context is shorter than ``length``."""
    diffusion = [method for method in methods if method != "autoregressive"]
    if diffusion and isinstance(bundle.network(), AutoregressiveLM):
        raise UsageError(
            f"{', '.join(diffusion)} sample a denoiser; the network of bundle {bundle.name} is autoregressive: use "
            "--methods autoregressive"
        )
    longest = bundle.network().length
    if bundle.autoregressive is not None and "autoregressive" in methods:
        longest = min(longest, bundle.autoregressive.length)
    if not 1 <= length <= longest:
        raise UsageError(f"length lies in [1, {longest}], the network's context; got {length}")


def _check_guidance(command: BenchCommand, methods: Sequence[Method]) -> None:
    """Refuse settings of guidance that no method reads."""
    flags = [name for name, value in vars(command.guidance).items() if value is not None]
    if flags and not {"guided", "guided floor"} & {*methods}:
        flag = f"--guidance.{flags[0].replace('_', '-')}"
        raise UsageError(
            f"{flag} is read by the method guided; --methods has {', '.join(methods)}: add guided, or leave {flag} out"
        )


def bench(args: Sequence[str]) -> None:
    """Run ``didi bench`` with the arguments after the command's name."""
    command = parse(BenchCommand, args, prog="didi bench")
    whole_number("--rounds", command.rounds, low=1)
    for flag, values in (("--nfe", command.nfe), ("--batch-size", command.batch_size)):
        for value in values:
            whole_number(flag, value, low=1)
    refuse_existing(command.out, ("bench.json", "bench.md"), overwrite=command.overwrite)
    with output_folder(command.out):
        _compare(command)


def _compare(command: BenchCommand) -> None:
    """Time all methods; write and print the table."""
    is_random = command.random or (command.model in teacher_names() and command.model not in bundled_names())
    load_bundle = partial(_bundle, command.model, command.role, is_random=is_random)
    bundle = load_bundle()
    requested = command.methods or default_methods(bundle.process)
    _check_guidance(command, requested)
    guidance = guidance_from_flags(command.guidance, bundle) or bundle.guidance or Guidance()
    length = bundle.network().length if command.length is None else command.length
    _check_networks(bundle, requested, length)
    for size, nfe in product(command.batch_size, command.nfe):
        for method in {*requested} & {*SAMPLERS}:
            find_sampler(method, bundle.process.name)
            options = SamplingOptions(method, batch_size=size, guidance=guidance if method == "guided" else None)
            check_batch(bundle, options, length, nfe, size)
        if bundle.autoregressive is not None and "autoregressive" in requested:
            check_batch(bundle, SamplingOptions(role="autoregressive", batch_size=size), length, nfe, size)
    floors = (floor_of(method, bundle.process) for method in requested)
    methods = [*requested, *(floor for floor in floors if floor)]
    rows = compare(
        bundle,
        [Workload(size, length, nfe, guidance) for size in command.batch_size for nfe in command.nfe],
        methods=list(dict.fromkeys(methods)),
        variants=[
            Variant(numerics, is_compiled)
            for is_compiled in ((False, True) if command.compile else (False,))
            for numerics in command.network
        ],
        rounds=command.rounds,
        load_bundle=load_bundle if command.memory else None,
        on_round=lambda workload, number: print(
            f"batch {workload.batch_size}, {workload.nfe} NFE: " + (f"round {number}" if number else "warming up"),
            file=sys.stderr,
        ),
    )
    machine = machine_name(default_device())
    table = speed_table(rows, model=bundle.name, machine=machine)
    if command.out is not None:  # before the table is printed, which fails if the pipe is closed
        record = {
            "model": bundle.name,
            "role": command.role,
            "guidance": asdict(guidance),
            "machine": machine,
            "rows": [row.record() for row in rows],
        }
        write_atomically(command.out / "bench.json", json_text(record, indent=1) + "\n")
        write_atomically(command.out / "bench.md", table)
    print(table, end="")
    if command.out is not None:
        print(command.out / "bench.md")
