"""Estimates of the memory that a batch needs; batches that do not fit are refused before sampling.

An estimate counts the tensors that exist at the same time. It was fitted to measured peaks of networks of several sizes
on a CPU and is within a factor of 1.5 of them for batches of 100 MiB or more.
"""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from didi.arguments import whole_number
from didi.diffusion.categorical import CHUNK_ELEMENTS
from didi.diffusion.rowwise import rows_at_a_time
from didi.errors import DidiError, UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role
from didi.models.guidance import Guidance
from didi.models.inference import trunk_dtype
from didi.sampling.base import ROWS, Grid, path_alphas
from didi.sampling.options import SamplingOptions
from didi.sampling.published_uniform import PublishedUniform
from didi.sampling.registry import find_sampler, ignores_grid, sampler_of, with_bundle_settings
from didi.sampling.score import ScoreSampler
from didi.sampling.uniform_ancestral import UniformAncestral
from didi.sampling.uniform_guided import PART, UniformGuided

ALL_LOGITS = {"confidence": 8, "entropy-bounded": 8, "published": 30, "reparam": 40}
"""Bytes for each logit, of samplers that hold the logits of all positions at the same time."""
ACTIVATIONS = 24 * 4
"""Bytes of the trunk for each position and hidden unit."""
BACKWARD = 20 * 4
"""Bytes for each position, hidden unit and block that are kept for a gradient."""
HEAD = 12
"""Bytes for each logit of a part of ``ROWS`` positions, for uniform-state diffusion and scores; two parts overlap."""
DRAW = 20
"""Bytes for each entry of the distributions that are drawn from, at most ``CHUNK_ELEMENTS`` at a time."""
MEAN = 64
"""Bytes for each symbol and position while mean embeddings are differentiated, for uniform-state diffusion."""
TOKEN = 64
"""Bytes for each token of a finished sample set: tensors, list and text."""


def batch_bytes(bundle: Bundle, options: SamplingOptions, length: int, num_moves: int, batch_size: int) -> float:
    """Peak memory of a batch in bytes, without the weights of the networks.

    Args:
        bundle: bundle of the networks.
        options: sampler and settings.
        length: number of positions.
        num_moves: number of moves of the time grid.
        batch_size: number of sequences.
    """
    network: Any = bundle.network(options.role)
    vocab_size, config = network.vocab_size, getattr(network, "config", None)
    hidden, blocks = getattr(config, "hidden_size", 0), getattr(config, "num_blocks", 0)
    positions = float(batch_size * length)
    trunk = positions * hidden * ACTIVATIONS * trunk_dtype(network).itemsize / 4
    if isinstance(network, AutoregressiveLM):  # keys and values of every block, copied in every pass
        return positions * hidden * blocks * 16 + batch_size * vocab_size * (8 + DRAW)
    name = "published" if options.precision == "float32" else sampler_of(bundle, options)
    kind = find_sampler(name, bundle.process.name).sampler
    if issubclass(kind, (UniformAncestral, ScoreSampler)):  # logits exist for a part of the positions only
        part = rows_at_a_time(vocab_size, next(network.parameters()).device)
        return trunk + vocab_size * (min(positions, ROWS) * HEAD + min(positions, part) * 3 * DRAW)
    if issubclass(kind, PublishedUniform):
        return trunk + positions * vocab_size * ALL_LOGITS["published"]
    if issubclass(kind, UniformGuided):
        return trunk + _uniform_guided_bytes(bundle, options, num_moves, positions)
    if name == "guided":
        return _guided_bytes(bundle, options, length, num_moves, batch_size, trunk)
    rows = 1.0 if ignores_grid(network, name) else _largest_move(bundle, options, num_moves) * length
    bytes_per_logit = 8
    if name in ALL_LOGITS:
        rows, bytes_per_logit = float(length), ALL_LOGITS[name] if options.precision == "float64" else 20
    bytes_per_draw = 0 if name == "published" else DRAW
    return trunk + _logits_bytes(batch_size * max(1.0, rows) * vocab_size, bytes_per_logit, bytes_per_draw, options)


def _logits_bytes(num: float, bytes_per_logit: int, bytes_per_draw: int, options: SamplingOptions) -> float:
    """Bytes of ``num`` logits and of the distributions that are drawn from."""
    bytes_per_logit += 32 if options.top_p < 1 else 4 if options.temperature != 1 else 0
    return num * bytes_per_logit + min(num, CHUNK_ELEMENTS) * bytes_per_draw


def _guided_bytes(
    bundle: Bundle, options: SamplingOptions, length: int, num_moves: int, batch_size: int, trunk: float
) -> float:
    """Bytes of the larger kind of move: tilted moves keep activations for the gradient, re-ranked ones candidates."""
    guidance = with_bundle_settings(options, bundle).guidance or Guidance()
    network, positions = bundle.denoiser(options.role), float(batch_size * length)
    hidden, share = network.config.hidden_size, _largest_move(bundle, options, num_moves)
    tilted = ranked = 0.0
    if guidance.tilted_fraction > 0:
        logits = _logits_bytes(positions * share * network.vocab_size, 22, 0, options)
        tilted = trunk + positions * hidden * network.config.num_blocks * BACKWARD + logits
    if guidance.tilted_fraction < 1:
        read = 1 - (1 - share) ** guidance.num_candidates
        logits = _logits_bytes(positions * read * network.vocab_size, 8, DRAW, options)
        ranked = trunk + positions * guidance.num_candidates * (hidden * ACTIVATIONS + 24) + logits
    return max(tilted, ranked)


def _uniform_guided_bytes(bundle: Bundle, options: SamplingOptions, num_moves: int, positions: float) -> float:
    """As ``_guided_bytes``, without the trunk; distributions over the vocabulary exist in parts of the positions."""
    guidance, network = with_bundle_settings(options, bundle).guidance or Guidance(), bundle.denoiser(options.role)
    hidden, vocab_size, num_tilted = network.config.hidden_size, network.vocab_size, len(guidance.scales(num_moves))
    tilted = ranked = 0.0
    if num_tilted:
        per_position = hidden * network.config.num_blocks * BACKWARD + (hidden + vocab_size) * 8  # all logits are kept
        tilted = positions * per_position + min(positions, PART) * vocab_size * MEAN
    if num_tilted < num_moves:
        part = rows_at_a_time(vocab_size, next(network.parameters()).device)
        ranked = positions * guidance.num_candidates * (hidden * ACTIVATIONS + 24)
        ranked += min(positions, part) * vocab_size * 3 * DRAW
    return max(tilted, ranked)


def _largest_move(bundle: Bundle, options: SamplingOptions, num_moves: int) -> float:
    """Largest share of the positions that a move is expected to reveal."""
    schedule: Any = bundle.process.schedule  # those of the package are frozen; one that may change is not cached
    largest_step = _largest_step if isinstance(schedule, Hashable) else _largest_step.__wrapped__
    return largest_step(schedule, options.grid, options.times, num_moves)


@lru_cache(maxsize=256)  # most requests of a server have the same times
def _largest_step(schedule: Any, grid: Grid, times: tuple[float, ...], num_moves: int) -> float:
    alphas = path_alphas(schedule, SamplingOptions(grid=grid, times=times).move_times(num_moves))
    return float(alphas.diff().max())


def free_bytes(device: torch.device) -> float:
    """Bytes that can still be allocated on a device; infinity if the system does not report them."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        return float(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))
    return min(_meminfo(), _cgroup())


def _meminfo(file: Path = Path("/proc/meminfo")) -> float:
    try:
        line = next(line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        return float("inf")
    return float(line.split()[1]) * 1024


def _cgroup(folder: Path = Path("/sys/fs/cgroup")) -> float:
    """Bytes left below the memory limit of the container; cached pages of files count as free."""
    try:
        limit, used = ((folder / name).read_text().strip() for name in ("memory.max", "memory.current"))
        pages = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
        return float(int(limit) - int(used) + int(pages.get("inactive_file", 0)))
    except (OSError, ValueError):  # no such file, or no limit: "max"
        return float("inf")


def check_batch(bundle: Bundle, options: SamplingOptions, length: int, num_moves: int, num_samples: int) -> None:
    """Refuse a batch that does not fit in the memory of the device.

    Raises:
        UsageError: the estimate exceeds the free memory; the message names the largest batch that fits.
    """
    device = next(bundle.network(options.role).parameters()).device
    free, size = free_bytes(device), min(options.batch_size, num_samples)
    needed = batch_bytes(bundle, options, length, num_moves, size)
    if needed <= free:
        return
    rule = f"a batch of {size} needs about {needed / 2**30:.1f} GiB and {free / 2**30:.1f} GiB are free on {device}"
    fits = _largest(size, lambda num: batch_bytes(bundle, options, length, num_moves, num) <= free)
    if fits:
        raise UsageError(f"{rule}: lower batch_size to {fits} or less")
    guidance = with_bundle_settings(options, bundle).guidance
    if guidance is not None:

        def fits_with(num: int) -> bool:
            with_num = replace(options, guidance=replace(guidance, num_candidates=num))
            return batch_bytes(bundle, with_num, length, num_moves, 1) <= free

        if fits := _largest(guidance.num_candidates, fits_with):
            raise UsageError(f"{rule}: lower batch_size to 1 and num_candidates to {fits} or less")
    raise UsageError(f"{rule}: lower length or use a smaller model")


def check_samples(
    bundle: Bundle, role: Role | None, num_samples: int, length: int | None, *, num_prompts: int = 1
) -> None:
    """Refuse a sample set whose tokens and texts do not fit in memory.

    Raises:
        UsageError: they do not; the message names the largest ``num_samples`` that fits.
    """
    free, context = free_bytes(torch.device("cpu")), bundle.network(role).length
    num_samples = whole_number("num_samples", num_samples, low=1)
    length = context if length is None else whole_number("length", length, low=1, high=context)
    if num_samples * num_prompts * length * TOKEN > free:
        fits = int(free / (num_prompts * length * TOKEN))
        fix = f"lower num_samples to {fits} or less" if fits else "give fewer prompts or a smaller length"
        raise UsageError(
            f"{num_samples * num_prompts} sequences of {length} tokens do not fit in {free / 2**30:.1f} GiB: {fix}, or "
            "use didi.stream"
        )


def _largest(high: int, fits: Callable[[int], bool]) -> int:
    """The largest number from 1 to ``high`` that fits; 0 if none does. All numbers below one that fits must fit too."""
    low, high = 0, high + 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


@contextmanager
def out_of_memory(batch_size: int) -> Iterator[None]:
    """Turn a failed allocation within the context into a one-line error.

    Raises:
        DidiError: an allocation failed.
    """
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        is_memory = isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)
        if not is_memory or isinstance(error, DidiError):
            raise
        raise DidiError(f"out of memory in a batch of {batch_size}: lower batch_size") from error
