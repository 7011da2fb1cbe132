"""``didi generate``: sample texts from a model and print them on standard output."""

import contextlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import didi
from didi.apps.live import LiveView, ProgressBar
from didi.apps.options import (
    GuidanceFlags,
    InitialStateFlags,
    OrderFlags,
    RemaskingFlags,
    ReparamFlags,
    sampling_options,
)
from didi.apps.prompt_files import read_prompts, text_or_input
from didi.apps.redesign import Templates, templates_of
from didi.apps.replay import run_replay
from didi.apps.streams import json_line
from didi.apps.terminal import parse
from didi.data.fasta import fasta_record
from didi.data.protein import is_protein_tokenizer
from didi.diffusion.categorical import Precision
from didi.errors import UsageError
from didi.evaluation.machine import machine_name
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role, load
from didi.models.inference import Numerics, for_inference
from didi.process_group import default_device
from didi.sampling.base import Grid
from didi.sampling.generate import Generation, generate_batches
from didi.sampling.options import DEFAULT_SAMPLER, SamplerName
from didi.sampling.prompt import Frame
from didi.sampling.prompts import PromptSet
from didi.sampling.record import sampling_record
from didi.sampling.redesign import sampled_positions

WORD_START = "Ġ"
"""The space before a word in the tokens of byte-level tokenizers."""
CUT_WORD = re.compile(r"(?!<\|)\S{0,30}\s+(?=\S)")
"""The rest of a word, of at most 30 characters, at the start of a text, and the space after it."""


@dataclass(frozen=True)
class GenerateCommand:
    """Generate texts from a model; standard output holds only the texts."""

    model: str
    """A bundled name, a bundle folder or a Hub repository."""
    num_samples: int | None = None
    """Number of texts to generate; 8 by default. With --prompts: for each prompt, by default 1."""
    nfe: int | None = None
    """Number of sampling steps; by default the number that the student was trained for, or 16. A step takes at most one
    network pass, with reparam at most two."""
    sampler: SamplerName = DEFAULT_SAMPLER
    """ancestral (Eq. 10) is exact; docs/samplers.md describes the others. default is one-step for a student that was
    trained for it, else ancestral."""
    role: Role | None = None
    """Network to sample from; by default the student if the bundle has one."""
    precision: Precision = "float64"
    """Precision of the random draws; float32 has the bias of published samplers."""
    seed: int = 0
    """Random seed; the random numbers of a text do not depend on the batch size."""
    prefix: str | None = None
    """Text that every sample starts with; - reads it from standard input."""
    infill: str | None = None
    """Text in which every [MASK] is one token to fill in; - reads it from standard input."""
    prompts: str | None = None
    """File of prompts, one a line, of any lengths; - is standard input. A line with a [MASK] is an infill text, others
    are prefixes; or each line is a JSON object with prefix or infill, and optionally seed and length. Equal prompts
    have equal samples; --num-samples draws several of each."""
    proteins: str | None = None
    """FASTA file of proteins to redesign; - is standard input. Residues X and those of --redesign are sampled, all
    others are kept. --num-samples draws several of each protein, by default 1."""
    redesign: tuple[str, ...] = ()
    """Regions of --proteins to sample, counted from 1, such as 31-35 or 40; 95-102:12 puts 12 residues in their place,
    and 6:3 puts 3 in place of residue 6."""
    keep: tuple[str, ...] = ()
    """Regions of --proteins to keep, such as 40-60; all other residues are sampled."""
    length: tuple[int, ...] = ()
    """Number of tokens in a text, or of residues in a protein; several numbers are used in turn. By default the length
    of the model's context."""
    temperature: float = 1.0
    """Divides the logits; sampling is exact only at 1, and 0 takes the likeliest tokens."""
    top_p: float = 1.0
    """Probability mass of each token's distribution that is kept, likeliest tokens first; sampling is exact at 1."""
    grid: Grid = "uniform"
    """Spacing of the times of the sampling steps."""
    times: tuple[float, ...] = ()
    """Times of the sampling steps, from 1 down to 0; replaces --nfe and --grid."""
    batch_size: int = 32
    """Number of sequences in a batch; changes speed and memory, and samples by rounding alone."""
    network: Numerics = "float32"
    """Number format of the network's trunk; the draws use --precision."""
    compile: bool = False
    """Compile the trunk with torch.compile; faster only for many batches."""
    guidance: GuidanceFlags = field(default_factory=GuidanceFlags)
    order: OrderFlags = field(default_factory=OrderFlags)
    entropy_bound: float | None = None
    """entropy-bounded: bound in nats on the sum of the entropies of a step's tokens without the largest; default 1."""
    remask: RemaskingFlags = field(default_factory=RemaskingFlags)
    initial_state: InitialStateFlags = field(default_factory=InitialStateFlags)
    reparam: ReparamFlags = field(default_factory=ReparamFlags)
    live: bool = False
    """Show the first texts on standard error during sampling."""
    html: Path | None = None
    """Write a page that replays one text, move by move, with measured times: one file without external assets."""
    gif: Path | None = None
    """Write the same replay as an animation."""
    race: tuple[str, ...] = ()
    """Networks that write on one prompt, one after the other, for --html and --gif: each ROLE, ROLE:MOVES or
    ROLE:MOVES:SAMPLER, such as student:8 teacher:64 autoregressive."""
    baseline: str | None = None
    """Model whose autoregressive network takes part in --race, if --model has none."""
    overwrite: bool = False
    """Replace the files of --html and --gif."""
    format: Literal["text", "jsonl", "fasta"] = "text"
    """text, without a partial word at its start; jsonl, one JSON object per line with everything that is needed to
    repeat the sample; or fasta, for proteins."""


def run_generate(args: Sequence[str]) -> None:
    """Run ``didi generate`` with the arguments after the command's name."""
    command = parse(GenerateCommand, args, prog="didi generate")
    _check(command)
    templates = templates_of(command)
    prompts = None if command.prompts is None else read_prompts(command.prompts)
    prompts = prompts if templates is None else list(templates.prompts)
    prefix, infill = text_or_input(command.prefix, "--prefix"), text_or_input(command.infill, "--infill")
    if command.html or command.gif or command.race:
        run_replay(command, prefix, infill)
        return
    num_samples = (8 if prompts is None else 1) if command.num_samples is None else command.num_samples
    loaded = load(command.model).to(default_device())
    if not is_protein_tokenizer(loaded.tokenizer):
        if command.format == "fasta":
            raise UsageError(
                f"--format fasta writes proteins; {command.model} is not a protein model: use text or jsonl"
            )
        if templates is not None:
            raise UsageError(f"--proteins redesigns proteins; {command.model} is not a protein model: use --infill")
    if templates is not None:
        templates.check_lengths(loaded.network(command.role))
    bundle = for_inference(loaded, command.network, is_compiled=command.compile)
    options = sampling_options(
        command, bundle, sampler=command.sampler, role=command.role, is_whole_batch=command.compile
    )
    started = time.perf_counter()
    with _on_screen(bundle, command, num_samples * len(prompts or [None])) as (on_move, paused):
        batches = generate_batches(
            bundle,
            num_samples=num_samples,
            nfe=command.nfe,
            seed=command.seed,
            prefix=prefix,
            infill=infill,
            prompts=prompts,
            length=command.length or None,
            options=options,
            on_move=on_move,
        )
        prompt_set = PromptSet.of(prompts, num_samples, command.seed, prefix, infill, command.length)
        printer = _Printer(command, prompt_set, loaded, templates)
        num_tokens, num_framing = 0, Frame.of(loaded.network(command.role)).num_ids
        for drawn in batches:
            with paused():
                printer.write(drawn)
            num_tokens += int(drawn.lengths.sum()) - num_framing * len(drawn.texts)
    seconds = time.perf_counter() - started
    print(f"{num_tokens} tokens in {seconds:.2f} s, {num_tokens / seconds:,.0f} a second", file=sys.stderr)


def _check(command: GenerateCommand) -> None:
    """Refuse a flag that needs another one, before anything is read."""
    if command.baseline is not None and not command.race:
        raise UsageError(
            f"--baseline is for --race; got {command.baseline!r} without --race: add it, or leave --baseline out"
        )


@contextmanager
def _on_screen(
    bundle: Bundle, command: GenerateCommand, num_sequences: int
) -> Iterator[tuple[Callable[..., None] | None, Callable[[], contextlib.AbstractContextManager[None]]]]:
    """A view or progress bar: its callback for every move, and a context in which results can be printed."""
    if command.live:
        with LiveView(bundle) as view:
            yield view, view.paused
        return
    with ProgressBar(num_sequences) as bar:
        yield bar, bar.paused


class _Printer:
    """Writes finished samples to standard output, batch by batch.

    Args:
        command: the parsed command.
        prompts: the prompt, seed and index of each sequence.
        loaded: the bundle as it was loaded.
        templates: the proteins of ``--proteins``.
    """

    def __init__(
        self, command: GenerateCommand, prompts: PromptSet, loaded: Bundle, templates: Templates | None = None
    ) -> None:
        self._command, self._prompts, self._loaded, self._templates = command, prompts, loaded, templates
        self._num_written = 0
        self._cuts_words = cuts_words(loaded, command.role)
        self._shared: Mapping[str, Any] = {}

    def write(self, drawn: Generation) -> None:
        """Write a batch and flush standard output."""
        for row, text in enumerate(drawn.texts):
            if self._command.format == "jsonl":
                print(json_line(self._record(drawn, row)))
            elif self._command.format == "fasta":
                print(fasta_record(self._title(drawn), text), end="")
            else:
                prompt = self._prompts.prompt(self._num_written)
                is_cut = self._cuts_words and prompt.prefix is None and prompt.infill is None
                printed = without_cut_word(text) if is_cut else text
                print(f"--- {self._num_written + 1} of {len(self._prompts)}\n{printed}\n")
            self._num_written += 1
        sys.stdout.flush()

    def _title(self, drawn: Generation) -> str:
        """Title of a FASTA record: a name, and how the sample was drawn."""
        number, prompt = self._num_written, self._prompts.prompt(self._num_written)
        settings = {"model": self._loaded.name, "sampler": drawn.sampler, "nfe": drawn.nfe, "seed": prompt.seed}
        settings |= {"index": self._prompts.index(number), **self._template()}
        return " ".join((f"sample-{number + 1}", *(f"{name}={value}" for name, value in settings.items())))

    def _template(self) -> dict[str, str]:
        """Name of the protein that the next sample redesigns, and the positions that were sampled."""
        if self._templates is None:
            return {}
        number = self._num_written // self._prompts.num_samples
        return {"template": self._templates.names[number], "sampled": sampled_positions(self._prompts.prompts[number])}

    def _record(self, drawn: Generation, row: int) -> dict[str, Any]:
        prompt = self._prompts.prompt(self._num_written)
        texts = {"prefix": prompt.prefix, "infill": prompt.infill}
        return {
            "text": drawn.texts[row],
            "tokens": drawn.tokens[row, : drawn.lengths[row]].tolist(),
            "seed": prompt.seed,
            "index": self._prompts.index(self._num_written),
            **{name: text for name, text in texts.items() if text is not None},
            **self._template(),
            "network_passes": int(drawn.network_passes[row]),
            "discriminator_passes": int(drawn.discriminator_passes[row]),
            **self._shared_fields(drawn),
            "length": int(drawn.lengths[row]) - Frame.of(self._loaded.network(self._command.role)).num_ids,
        }

    def _shared_fields(self, drawn: Generation) -> Mapping[str, Any]:
        """Fields that the records of all samples share, computed once."""
        if not self._shared:
            command = self._command
            options = sampling_options(command, self._loaded, sampler=command.sampler, role=command.role)
            self._shared = {
                **sampling_record(self._loaded, options, nfe=drawn.nfe, length=drawn.tokens.shape[1]),
                "network": command.network,
                "compile": command.compile,
                "machine": machine_name(default_device()),
                "version": didi.__version__,
            }
        return self._shared


def cuts_words(bundle: Bundle, role: Role | None = None) -> bool:
    """Whether a sample may begin within a word, as with byte-level tokenizers, whose tokens are parts of words.

    An autoregressive network with a begin-of-text token, such as the public GPT-2, begins with a whole word.
    """
    network = bundle.network(role)
    if isinstance(network, AutoregressiveLM) and network.config.begin_id is not None:
        return False
    return bundle.tokenizer is not None and any(token.startswith(WORD_START) for token in bundle.tokenizer.get_vocab())


def without_cut_word(text: str) -> str:
    """A sample of a byte-level tokenizer without the word that is cut at its start, and without the space after it.

    The text begins with a space if it begins with a whole word. Markers such as ``<|endoftext|>`` are kept.
    """
    match = CUT_WORD.match(text)
    return text[match.end() :] if match else text
