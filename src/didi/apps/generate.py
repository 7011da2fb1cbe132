"""``didi generate``: texts from a model, on standard output."""

import contextlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from didi.apps.live import LiveView
from didi.apps.options import GuidanceFlags, OrderFlags, RemaskingFlags, sampling_options
from didi.apps.terminal import parse
from didi.diffusion.categorical import Precision
from didi.models.bundle import Role, load
from didi.models.inference import Numerics, for_inference
from didi.sampling.base import Grid
from didi.sampling.generate import generate
from didi.sampling.options import SamplerName
from didi.world import default_device


@dataclass(frozen=True)
class GenerateCommand:
    """Generate texts from a model; standard output holds only the texts."""

    model: str
    """A bundled name, a bundle folder or a Hub repository."""
    num_samples: int = 8
    """Number of texts to generate."""
    nfe: int | None = None
    """Number of sampling steps, at most so many network passes; by default what the student was trained for, or 16."""
    sampler: SamplerName = "ancestral"
    """ancestral (Eq. 10) is exact; docs/samplers.md describes the others."""
    role: Role | None = None
    """Network to sample from; by default the student if the bundle has one."""
    precision: Precision = "float64"
    """Precision of the random draws; float32 has the bias of published samplers."""
    seed: int = 0
    """Random seed: each text has random numbers of its own, whatever the batch size."""
    prefix: str | None = None
    """Text that every sample starts with."""
    infill: str | None = None
    """Text in which every [MASK] is one token to fill in."""
    length: int | None = None
    """Number of tokens in a text; by default the model's context length."""
    temperature: float = 1.0
    """Divides the logits; sampling is exact only at 1."""
    top_p: float = 1.0
    """Probability mass of each token's distribution that is kept, likeliest tokens first; sampling is exact at 1."""
    grid: Grid = "uniform"
    """Spacing of the times of the sampling steps."""
    times: tuple[float, ...] = ()
    """Times of the sampling steps, from 1 down to 0; replaces --nfe and --grid."""
    batch_size: int = 32
    """Number of sequences in a batch; affects speed and memory only."""
    network: Numerics = "float32"
    """Number format of the network's trunk; the draws use --precision."""
    compile: bool = False
    """Compile the trunk with torch.compile; faster only for many batches."""
    guidance: GuidanceFlags = field(default_factory=GuidanceFlags)
    order: OrderFlags = field(default_factory=OrderFlags)
    entropy_bound: float | None = None
    """entropy-bounded: nats by which the sum of the entropies of the tokens of a step may exceed the largest one; 1."""
    remask: RemaskingFlags = field(default_factory=RemaskingFlags)
    live: bool = False
    """Show the first texts on standard error during sampling."""
    format: Literal["text", "jsonl"] = "text"
    """text, or jsonl: one JSON object per line."""


def run_generate(args: Sequence[str]) -> None:
    """Run ``didi generate`` with the arguments after the command's name."""
    command = parse(GenerateCommand, args, prog="didi generate")
    bundle = for_inference(load(command.model).to(default_device()), command.network, is_compiled=command.compile)
    options = sampling_options(
        command, bundle, sampler=command.sampler, role=command.role, is_whole_batch=command.compile
    )
    with LiveView(bundle) if command.live else contextlib.nullcontext() as on_move:
        drawn = generate(
            bundle,
            num_samples=command.num_samples,
            nfe=command.nfe,
            seed=command.seed,
            prefix=command.prefix,
            infill=command.infill,
            length=command.length,
            options=options,
            on_move=on_move,
        )
    for number, text in enumerate(drawn.texts):
        if command.format == "text":
            print(f"--- {number + 1} of {command.num_samples}\n{text}\n")
        else:
            record = {
                "text": text,
                "tokens": drawn.tokens[number].tolist(),
                "nfe": drawn.nfe,
                "network_passes": int(drawn.network_passes[number]),
                "discriminator_passes": int(drawn.discriminator_passes[number]),
                "seed": drawn.seed,
            }
            print(json.dumps(record, ensure_ascii=False))
    speed = drawn.tokens.numel() / drawn.seconds
    print(f"{drawn.tokens.numel()} tokens in {drawn.seconds:.2f} s, {speed:,.0f} a second", file=sys.stderr)
