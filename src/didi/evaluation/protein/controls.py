"""Sets of proteins whose order of quality is known, scored beside a model's samples."""

from collections.abc import Sequence

import torch

from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.models.proteins import RESIDUES

NATURAL, MUTATED, SHUFFLED, UNIFORM, POLY_ALANINE = "natural", "mutated", "shuffled", "uniform", "poly-alanine"
CONTROLS = (NATURAL, MUTATED, SHUFFLED, UNIFORM, POLY_ALANINE)
"""Names of the sets of ``control_sets``, in their order."""
MUTATED_SHARE = 0.2
ORDER = ((NATURAL, MUTATED), (MUTATED, SHUFFLED), (MUTATED, UNIFORM), (NATURAL, POLY_ALANINE))
"""Pairs of controls of which a judge of foldability must prefer the first."""


def control_sets(natural: Sequence[str], *, seed: int = 0) -> dict[str, list[str]]:
    """Control sets by name; the n-th sequences of all sets have equal lengths.

    Args:
        natural: held-out proteins of the standard residues.
        seed: random seed of mutations, shuffling and uniform draws.

    Returns:
        The natural proteins; copies with 20% of their residues replaced by other residues, drawn uniformly; copies
        with their residues in random order; residues drawn uniformly; sequences of alanine only.

    Raises:
        UsageError: there is no protein, or a protein has a letter that is not a standard residue.
    """
    others = "".join(sorted(set("".join(natural)) - set(RESIDUES)))
    if not natural or others:
        problem = f"the letters {others!r}: leave these proteins out" if others else "none"
        raise UsageError(f"controls are made of one protein or more of the residues {RESIDUES}; got {problem}")
    numbered = list(enumerate(natural))
    return {
        NATURAL: list(natural),
        MUTATED: [_mutated(residues, named_generator(seed, MUTATED, number)) for number, residues in numbered],
        SHUFFLED: [_shuffled(residues, named_generator(seed, SHUFFLED, number)) for number, residues in numbered],
        UNIFORM: [_uniform(len(residues), named_generator(seed, UNIFORM, number)) for number, residues in numbered],
        POLY_ALANINE: ["A" * len(residues) for residues in natural],
    }


def _mutated(residues: str, generator: torch.Generator) -> str:
    letters, num = list(residues), round(MUTATED_SHARE * len(residues))
    places = torch.randperm(len(residues), generator=generator)[:num].tolist()
    shifts = torch.randint(1, len(RESIDUES), (num,), generator=generator).tolist()
    for place, shift in zip(places, shifts, strict=True):
        letters[place] = RESIDUES[(RESIDUES.index(letters[place]) + shift) % len(RESIDUES)]
    return "".join(letters)


def _shuffled(residues: str, generator: torch.Generator) -> str:
    return "".join(residues[place] for place in torch.randperm(len(residues), generator=generator).tolist())


def _uniform(length: int, generator: torch.Generator) -> str:
    return "".join(RESIDUES[index] for index in torch.randint(len(RESIDUES), (length,), generator=generator).tolist())
