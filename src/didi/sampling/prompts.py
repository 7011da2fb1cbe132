"""Several prompts in one sample set: which prompt, seed and number belong to which sequence."""

import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch

from didi.arguments import instance, listed, set_fields, whole_number
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise, derive_seed
from didi.errors import UsageError
from didi.models.bundle import Bundle
from didi.sampling.prompt import MASK, Frame, canvas_from_prompt, framed


@dataclass(frozen=True)
class Prompt:
    """What the samples of a prompt are given.

    Attributes:
        prefix: text that they begin with.
        infill: text whose [MASK]s are filled in, instead of ``prefix``.
        seed: seed of the samples; by default it is derived from the seed of the set and the text, so that the samples
            of a prompt depend neither on the other prompts nor on its place among them.
    """

    prefix: str | None = None
    infill: str | None = None
    seed: int | None = None

    def __post_init__(self) -> None:
        for name in ("prefix", "infill"):
            if (text := getattr(self, name)) is not None:
                instance(name, text, str)
        if self.seed is not None:
            set_fields(self, seed=whole_number("seed", self.seed))

    @classmethod
    def from_text(cls, text: str) -> "Prompt":
        """A text with a [MASK] as ``infill``, any other as ``prefix``."""
        return cls(infill=text) if MASK in text else cls(prefix=text)

    def own_seed(self, seed: int) -> int:
        """Seed of its samples in a set with ``seed``."""
        return derive_seed(seed, "prompt", self.prefix or "", self.infill or "") if self.seed is None else self.seed


def known_prompts(prompts: Iterable[str | Prompt]) -> list[Prompt]:
    """Texts and records as records.

    Args:
        prompts: a list or any other iterable of one or more; not a single text.

    Raises:
        UsageError: there is none, or one is neither a text nor a ``Prompt``.
    """
    found = [
        Prompt.from_text(one) if isinstance(one, str) else one for one in listed("prompts", prompts, allows_none=True)
    ]
    if not found:
        raise UsageError("prompts are one or more; got none")
    return [instance("a prompt", one, Prompt) for one in found]


@dataclass(frozen=True)
class PromptSet:
    """The sequences of a sample set: ``num_samples`` for each prompt, those of the first prompt first.

    Attributes:
        prompts: one or more; their seeds are not None.
        num_samples: number of sequences for each prompt.
        lengths: lengths without frame; the samples of a prompt take them in turn.
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
        """The sequences that the arguments of ``stream`` ask for.

        Raises:
            UsageError: ``prompts`` is empty, or given together with ``prefix`` or ``infill``.
        """
        if prompts is None:
            return cls((Prompt(prefix, infill, seed),), num_samples, lengths)
        if prefix is not None or infill is not None:
            raise UsageError("give prompts, or one prefix or infill text for all samples, not both")
        known = tuple(Prompt(one.prefix, one.infill, one.own_seed(seed)) for one in known_prompts(prompts))
        return cls(known, num_samples, lengths)

    def __len__(self) -> int:
        return len(self.prompts) * self.num_samples

    def prompt(self, sequence: int) -> Prompt:
        """The prompt of a sequence, with the seed of its noise."""
        return self.prompts[sequence // self.num_samples]

    def index(self, sequence: int) -> int:
        """Number of a sequence within those of its prompt, from 0."""
        return sequence % self.num_samples

    def length(self, sequence: int) -> int:
        """Length of a sequence without its frame."""
        return self.lengths[self.index(sequence) % len(self.lengths)]

    def canvas(self, bundle: Bundle, frame: Frame) -> Canvas:
        """One row for each prompt and length, those of the first prompt first; see ``canvas_from_prompt``."""
        rows, width = [], max(self.lengths) + frame.num_ids
        for number, one in enumerate(self.prompts, start=1):
            try:
                of_prompt = [
                    canvas_from_prompt(bundle, length, prefix=one.prefix, infill=one.infill) for length in self.lengths
                ]
            except UsageError as error:
                if len(self.prompts) == 1:
                    raise
                text = reprlib.repr(one.infill if one.prefix is None else one.prefix)
                raise UsageError(f"prompt {number} ({text}): {error}") from error
            rows += [framed(canvas, frame, width) for canvas in of_prompt]
        tokens, is_free, is_real = (
            torch.cat([getattr(one, name) for one in rows]) for name in ("tokens", "is_free", "is_real")
        )
        return Canvas(tokens, is_free, is_real, has_padding=len(set(self.lengths)) > 1)

    def rows(self, canvas: Canvas, sequences: Sequence[int]) -> Canvas:
        """The rows of ``canvas``, one for each prompt and length, of ``sequences``; no wider than they need."""
        if len(canvas) == 1:
            return canvas.expand(len(sequences))
        lengths, num = [self.length(sequence) for sequence in sequences], len(self.lengths)
        which = [sequence // self.num_samples * num + self.index(sequence) % num for sequence in sequences]
        chosen = canvas.rows(torch.tensor(which, device=canvas.tokens.device))
        width = canvas.length - max(self.lengths) + max(lengths)
        tokens, is_free, is_real = (one[:, :width] for one in (chosen.tokens, chosen.is_free, chosen.is_real))
        return Canvas(tokens, is_free, is_real, has_padding=len(set(lengths)) > 1)

    def noise(self, canvas: Canvas, sequences: Sequence[int]) -> SequenceNoise:
        """Randomness of ``sequences``: a function of the seed of the prompt and the number within its samples.

        Args:
            canvas: of these sequences, from ``rows``.
            sequences: their numbers.
        """
        seeds = [one.seed or 0 for one in map(self.prompt, sequences)]
        indices = [self.index(sequence) for sequence in sequences]
        return SequenceNoise(seeds, indices, canvas.tokens.device, canvas.lengths)
