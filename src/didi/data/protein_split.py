"""Splits of proteins by clusters of similar sequences, so that training proteins are unlike test proteins."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from didi.diffusion.noise import named_generator
from didi.errors import UsageError


@dataclass(frozen=True)
class ProteinSplits:
    """Numbers of the sequences of each split; the splits have no cluster in common.

    Attributes:
        train: members of each training cluster, the representative first.
        validation: representatives, for choices during development.
        test: representatives, for reported results.
    """

    train: list[list[int]]
    validation: list[int]
    test: list[int]


def split_by_cluster(
    clusters: Sequence[int], *, seed: int = 0, validation: float = 0.05, test: float = 0.05
) -> ProteinSplits:
    """Assign whole clusters to three splits: all members for training, representatives for validation and test.

    Args:
        clusters: for each sequence, the number of the sequence that represents its cluster.
        seed: seed of the assignment.
        validation: share of the clusters in the validation split, in [0, 1); the number is rounded.
        test: share of the clusters in the test split, likewise.

    Raises:
        UsageError: a representative is in another cluster, a share is out of range, or no cluster is left for training.
    """
    for number in Counter(clusters):
        if not 0 <= number < len(clusters) or clusters[number] != number:
            raise UsageError(f"a representative is a member of its cluster; sequence {number} is not")
    representatives = sorted(set(clusters))
    num = len(representatives)
    num_validation, num_test = round(validation * num), round(test * num)
    held_out = num_validation + num_test
    if min(validation, test) < 0 or held_out >= num:
        raise UsageError(
            f"validation and test shares are 0 or more and leave a cluster to train on; got {validation} and {test} of "
            f"{num} clusters: lower them"
        )
    order = torch.randperm(num, generator=named_generator(seed, "protein-split")).tolist()
    shuffled = [representatives[index] for index in order]
    members = {representative: [representative] for representative in shuffled}
    for number, representative in enumerate(clusters):
        if number != representative:
            members[representative].append(number)
    train = [members[representative] for representative in shuffled[held_out:]]
    return ProteinSplits(train, shuffled[:num_validation], shuffled[num_validation:held_out])
