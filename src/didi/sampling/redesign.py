"""Redesign of proteins: some residues are kept, the others are sampled given them.

```python
prompt = redesign_prompt("EVQLVESGGGLVQPGGSLRLSCAAS", redesign=["3-7", "12:4"])
samples = didi.generate(bundle, prompts=[prompt], num_samples=8).texts
```
"""

import re
from collections.abc import Sequence
from typing import NamedTuple

from didi.arguments import instance, listed
from didi.data.protein import RESIDUES
from didi.errors import UsageError
from didi.models.tokenizer_fit import MASK
from didi.sampling.prompts import Prompt

UNKNOWN = "X"
"""Letter of a residue that is sampled, wherever it stands in a protein."""
FORMS = "FIRST-LAST, POSITION, FIRST-LAST:N or POSITION:N, such as 31-35, 40, 95-102:12 or 6:3"
"""Forms of a region, for error messages."""
REGION = re.compile(r"([0-9]{1,6})(?:-([0-9]{1,6}))?(?::([0-9]{1,6}))?")


class Region(NamedTuple):
    """A region of a protein.

    Attributes:
        first: number of its first residue, from 1.
        last: number of its last residue.
        num_sampled: number of residues that replace it; None for as many as it has.
    """

    first: int
    last: int
    num_sampled: int | None = None


def parse_region(text: str) -> Region:
    """A region from ``31-35``, ``40`` or, for 12 residues in place of 8, ``95-102:12``; ``6:3`` is ``6-6:3``.

    Raises:
        UsageError: the text has another form, or the region is empty.
    """
    rule = f"a region is {FORMS}; got {text!r}"
    if (match := REGION.fullmatch(instance("a region", text, str))) is None:
        raise UsageError(rule)
    first, last, num = (None if part is None else int(part) for part in match.groups())
    region = Region(first or 0, (first if last is None else last) or 0, num)
    if not 1 <= region.first <= region.last or num == 0:
        raise UsageError(f"{rule}: positions begin at 1, FIRST is at most LAST, and N is 1 or more")
    return region


def redesign_prompt(
    residues: str, *, redesign: Sequence[str] = (), keep: Sequence[str] = (), seed: int | None = None
) -> Prompt:
    """The prompt whose samples are ``residues`` with some of them sampled again.

    Residues that are not sampled are the same in every sample. The letter X is sampled wherever it stands.

    Args:
        residues: letters of the 20 standard residues and X, one for each residue.
        redesign: regions that are sampled, see ``parse_region``. Positions count the letters of ``residues`` from 1;
            numbers of a scheme such as IMGT or Kabat have to be converted first.
        keep: regions that are kept, instead of ``redesign``; all other residues are sampled.
        seed: seed of the samples; by default derived from the seed of the set, ``residues`` and the sampled positions.

    Raises:
        UsageError: both kinds of regions are given, a region does not fit or overlaps another, a residue that is kept
            is not a standard one, or no residue is sampled.
    """
    residues = instance("residues", residues, str)
    if redesign and keep:
        raise UsageError("give regions to redesign or regions to keep, not both")
    regions = _checked_regions(redesign or keep, len(residues))
    if keep and any(region.num_sampled is not None for region in regions):
        raise UsageError("a region that is kept keeps its number of residues; leave : and the number out")
    parts, end = [], 0
    for region in regions:
        before, within = residues[end : region.first - 1], residues[region.first - 1 : region.last]
        sampled = UNKNOWN * (len(within) if region.num_sampled is None else region.num_sampled)
        parts += [UNKNOWN * len(before), within] if keep else [before, sampled]
        end = region.last
    template = "".join([*parts, UNKNOWN * len(residues[end:]) if keep else residues[end:]])
    if wrong := sorted(set(template) - {*RESIDUES, UNKNOWN}):
        place = template.index(wrong[0]) + 1
        raise UsageError(
            f"a residue that is kept is one of {RESIDUES}; residue {place} of the sample would be {wrong[0]!r}: "
            "redesign it"
        )
    if UNKNOWN not in template:
        if keep:
            raise UsageError("all residues are kept, so that none is sampled: keep fewer")
        raise UsageError(f"a protein has a residue to sample; give regions, or write {UNKNOWN} for such residues")
    return Prompt(infill=template.replace(UNKNOWN, MASK), seed=seed, length=len(template), identity=residues)


def sampled_positions(prompt: Prompt) -> str:
    """The positions that are sampled for an infill prompt of a protein, as ``31-35,50`` counted from 1."""
    template = (prompt.infill or "").replace(MASK, UNKNOWN)
    runs = ((match.start() + 1, match.end()) for match in re.finditer(f"{UNKNOWN}+", template))
    return ",".join(str(first) if first == last else f"{first}-{last}" for first, last in runs)


def _checked_regions(texts: Sequence[str], num_residues: int) -> list[Region]:
    """Regions in order.

    Raises:
        UsageError: one is not within the protein, or two overlap.
    """
    regions = sorted(map(parse_region, listed("regions", texts, allows_none=True)))
    end = 0
    for region in regions:
        if region.last > num_residues:
            raise UsageError(
                f"a region lies within the {num_residues} residues of the protein; got {region.first}-{region.last}"
            )
        if region.first <= end:
            raise UsageError(f"regions do not overlap; residue {region.first} is in two of them")
        end = region.last
    return regions
