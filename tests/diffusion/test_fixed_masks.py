"""Masks of a given size: rounding of sizes, and the choice of positions."""

import torch

from didi.diffusion.fixed_masks import mask_sizes, masks_of_size


def test_sizes_are_rounded_and_between_one_and_the_number_of_free_positions():
    ratio, num_free = torch.tensor([0.0, 0.01, 0.24, 0.26, 1.0, 0.5]), torch.tensor([10, 10, 10, 10, 10, 0])
    assert mask_sizes(ratio, num_free).tolist() == [1, 1, 2, 3, 10, 0]
    assert mask_sizes(0.5, torch.tensor([1, 4, 7])).tolist() == [1, 2, 4]


def test_the_free_positions_with_the_smallest_uniform_numbers_are_masked():
    uniforms = torch.tensor([[0.5, 0.1, 0.3, 0.2], [0.9, 0.8, 0.0, 0.7], [0.4, 0.3, 0.2, 0.1]])
    is_free = torch.tensor([[True, True, True, True], [True, True, False, True], [False, False, False, False]])
    masks = masks_of_size(torch.tensor([2, 2, 0]), uniforms, is_free)
    assert masks.nonzero().tolist() == [[0, 1], [0, 3], [1, 1], [1, 3]]
