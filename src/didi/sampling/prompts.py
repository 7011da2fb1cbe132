"""Sample sets with several prompts: the prompt, the seed and the number of each sequence."""

import reprlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch

from didi.arguments import instance, listed, set_fields, whole_number
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise, derive_seed
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.networks import DenoiserNetwork
from didi.sampling.prompt import MASK, Frame, canvas_from_prompt, checked_lengths, framed


@dataclass(frozen=True)
class Prompt:
    """A prompt and the seed of its samples.

    Attributes:
        prefix: text that the samples begin with.
        infill: text whose [MASK]s are filled in, instead of ``prefix``.
        seed: seed of the samples. By default it is derived from the seed of the set and the text, so that the samples
            depend neither on the other prompts nor on their order.
        length: number of tokens of its samples, or of residues of a protein; by default the lengths of the set.
        identity: text that the derived seed depends on beside the prompt, so that prompts of different origin and equal
            text have different samples; it is not sampled.

    Raises:
        UsageError: a field has the wrong type, or ``length`` is less than 1.
    """

    prefix: str | None = None
    infill: str | None = None
    seed: int | None = None
    length: int | None = None
    identity: str | None = None

    def __post_init__(self) -> None:
        for name in ("prefix", "infill", "identity"):
            if (text := getattr(self, name)) is not None:
                instance(name, text, str)
        if self.seed is not None:
            set_fields(self, seed=whole_number("seed", self.seed))
        if self.length is not None:
            set_fields(self, length=whole_number("length", self.length, low=1))

    @classmethod
    def from_text(cls, text: str) -> "Prompt":
        """A prompt from a text: ``infill`` if the text has a [MASK], else ``prefix``."""
        return cls(infill=text) if MASK in text else cls(prefix=text)

    def own_seed(self, seed: int) -> int:
        """Seed of the samples of this prompt in a set with ``seed``."""
        if self.seed is not None:
            return self.seed
        identity = () if self.identity is None else (self.identity,)
        return derive_seed(seed, "prompt", self.prefix or "", self.infill or "", *identity)


def checked_prompts(prompts: Iterable[str | Prompt]) -> list[Prompt]:
    """Texts and ``Prompt`` records as a list of ``Prompt`` records.

    Args:
        prompts: one or several texts or records; a single text is one prompt.

    Raises:
        UsageError: there is no prompt, or an item is neither a text nor a ``Prompt``.
    """
    items = listed("prompts", prompts, allows_none=True)
    if not items:
        raise UsageError("prompts are one or more; got none")
    records = [Prompt.from_text(item) if isinstance(item, str) else item for item in items]
    return [instance("a prompt", record, Prompt) for record in records]


@dataclass(frozen=True)
class PromptSet:
    """The sequences of a sample set: ``num_samples`` for each prompt, in the order of the prompts.

    Attributes:
        prompts: one or more prompts with seeds.
        num_samples: number of sequences for each prompt.
        lengths: lengths without frame; the samples of a prompt that has no length of its own cycle through them.
    """

    prompts: tuple[Prompt, ...]
    num_samples: int
    lengths: tuple[int, ...]

    @classmethod
    def of(
        cls,
        prompts: Iterable[str | Prompt] | None,
        num_samples: int,
        seed: int,
        prefix: str | None,
        infill: str | None,
        lengths: tuple[int, ...],
    ) -> "PromptSet":
        """The sample set for the arguments of ``stream``.

        Raises:
            UsageError: ``prompts`` is empty, or given together with ``prefix`` or ``infill``.
        """
        if prompts is None:
            return cls((Prompt(prefix, infill, seed),), num_samples, lengths)
        if prefix is not None or infill is not None:
            raise UsageError("give prompts, or one prefix or infill text for all samples, not both")
        seeded = (replace(prompt, seed=prompt.own_seed(seed)) for prompt in checked_prompts(prompts))
        return cls(tuple(seeded), num_samples, lengths)

    def __len__(self) -> int:
        return len(self.prompts) * self.num_samples

    def prompt(self, sequence: int) -> Prompt:
        """The prompt of a sequence, with its seed."""
        return self.prompts[sequence // self.num_samples]

    def index(self, sequence: int) -> int:
        """Number of a sequence among the samples of its prompt, from 0."""
        return sequence % self.num_samples

    def length(self, sequence: int) -> int:
        """Length of a sequence without its frame."""
        return self._lengths_of(self.prompt(sequence))[self.index(sequence) % len(self.lengths)]

    @property
    def longest(self) -> int:
        """Largest length of a sequence without its frame."""
        return max(length for prompt in self.prompts for length in self._lengths_of(prompt))

    def _lengths_of(self, prompt: Prompt) -> tuple[int, ...]:
        """Lengths of the samples of a prompt, as many for each prompt."""
        return self.lengths if prompt.length is None else (prompt.length,) * len(self.lengths)

    def checked_longest(self, network: DenoiserNetwork | AutoregressiveLM) -> int:
        """``longest``, after a check that all samples fit in the context of a network.

        Raises:
            UsageError: a length does not fit; the message names the prompt.
        """
        for number, prompt in enumerate(self.prompts, start=1):
            with self._named(number, prompt):
                checked_lengths(network, self._lengths_of(prompt))
        return self.longest

    @contextmanager
    def _named(self, number: int, prompt: Prompt) -> Iterator[None]:
        """Name the prompt in errors if there are several."""
        try:
            yield
        except UsageError as error:
            if len(self.prompts) == 1:
                raise
            text = reprlib.repr(prompt.infill if prompt.prefix is None else prompt.prefix)
            raise UsageError(f"prompt {number} ({text}): {error}") from error

    def canvas(self, bundle: Bundle, frame: Frame) -> Canvas:
        """One row for each prompt and length, in the order of the prompts; see ``canvas_from_prompt``.

        Raises:
            UsageError: a prompt does not fit; the message names it.
        """
        rows, width = [], self.longest + frame.num_ids
        for number, prompt in enumerate(self.prompts, start=1):
            with self._named(number, prompt):
                canvases = [
                    canvas_from_prompt(bundle, length, prefix=prompt.prefix, infill=prompt.infill)
                    for length in self._lengths_of(prompt)
                ]
            rows += [framed(canvas, frame, width) for canvas in canvases]
        tokens, is_free, is_real = (
            torch.cat([getattr(row, name) for row in rows]) for name in ("tokens", "is_free", "is_real")
        )
        return Canvas(tokens, is_free, is_real, has_padding=not bool(is_real.all()))

    def rows(self, canvas: Canvas, sequences: Sequence[int]) -> Canvas:
        """One row for each of ``sequences``, from the ``canvas`` of the set; without columns that are all padding."""
        if len(canvas) == 1:
            return canvas.expand(len(sequences))
        lengths, num = [self.length(sequence) for sequence in sequences], len(self.lengths)
        which = [sequence // self.num_samples * num + self.index(sequence) % num for sequence in sequences]
        chosen = canvas.rows(torch.tensor(which, device=canvas.tokens.device))
        width = canvas.length - self.longest + max(lengths)
        tokens, is_free, is_real = (part[:, :width] for part in (chosen.tokens, chosen.is_free, chosen.is_real))
        return Canvas(tokens, is_free, is_real, has_padding=len(set(lengths)) > 1)

    def noise(self, canvas: Canvas, sequences: Sequence[int]) -> SequenceNoise:
        """Random numbers of ``sequences``: they depend on the seed of the prompt and the number among its samples.

        Args:
            canvas: canvas of these sequences, from ``rows``.
            sequences: numbers of the sequences in the set.
        """
        seeds = [self.prompt(sequence).seed or 0 for sequence in sequences]
        indices = [self.index(sequence) for sequence in sequences]
        return SequenceNoise(seeds, indices, canvas.tokens.device, canvas.lengths)
