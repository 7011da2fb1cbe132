"""Splits of proteins by clusters of similar sequences, so that no relative of a test protein is trained on."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from didi.diffusion.noise import named_generator
from didi.errors import UsageError


@dataclass(frozen=True)
class ProteinSplits:
    """Numbers of sequences; the clusters of each split are in no other.

    Attributes:
        train: members of each training cluster, the representative first.
        validation: representatives, for choices made on the way.
        test: representatives, for the final figures.
    """

    train: list[list[int]]
    validation: list[int]
    test: list[int]


def split_by_cluster(
    clusters: Sequence[int], *, seed: int = 0, validation: float = 0.05, test: float = 0.05
) -> ProteinSplits:
    """Deal whole clusters to three splits; one sequence of each, its representative, is validated or tested on.

    Args:
        clusters: of each sequence, the number of the sequence that represents its cluster.
        seed: of the order in which clusters are dealt.
        validation: share of the clusters, rounded, in [0, 1).
        test: the same.

    Raises:
        UsageError: a representative is in another cluster, a share is out of range, or nothing is left to train on.
    """
    for number in Counter(clusters):
        if not 0 <= number < len(clusters) or clusters[number] != number:
            raise UsageError(f"a representative is a member of its cluster; sequence {number} is not")
    names = sorted(set(clusters))
    num_validation, num_test = round(validation * len(names)), round(test * len(names))
    held_out = num_validation + num_test
    if min(validation, test) < 0 or held_out >= len(names):
        raise UsageError(
            f"validation and test shares are 0 or more and leave a cluster to train on; got {validation} and {test} of "
            f"{len(names)} clusters: lower them"
        )
    order = torch.randperm(len(names), generator=named_generator(seed, "protein-split")).tolist()
    dealt = [names[place] for place in order]
    members: dict[int, list[int]] = {name: [name] for name in dealt}
    for number, name in enumerate(clusters):
        if number != name:
            members[name].append(number)
    train = [members[name] for name in dealt[held_out:]]
    return ProteinSplits(train, dealt[:num_validation], dealt[num_validation:held_out])
