"""Seeds and random streams: their dependence on names, seeds and sequence indices, not on the batch."""

import pytest
import torch

from didi.diffusion.noise import SequenceNoise, derive_seed, named_generator


def test_seeds_depend_on_every_part_of_a_name_and_their_order():
    names = [(), (0,), ("0",), (0, 1), (1, 0), ("a", "b"), ("ab",), ("a", "b", 0), (-1,), (2**70,)]
    seeds = [derive_seed(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, 1) == derive_seed(0, 1)


def test_a_seed_stays_the_same_over_releases():
    assert derive_seed(0, "rollout", 3) == 4495814937872463932


def test_generators_agree_for_equal_names_and_differ_for_others():
    first, again, other = (torch.rand(4, generator=named_generator(*name)) for name in (("a", 1), ("a", 1), ("a", 2)))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_splitting_a_batch_does_not_change_uniforms(dtype):
    def draws(noise):
        return [noise.uniforms(3, dtype=dtype), noise.uniforms(2, 2, dtype=dtype)]

    unsplit = draws(SequenceNoise(5, range(7)))
    parts = [draws(SequenceNoise(5, indices)) for indices in ([0, 1, 2], [3], [4, 5, 6])]
    for number, drawn in enumerate(unsplit):
        assert drawn.dtype == dtype
        assert torch.equal(drawn, torch.cat([part[number] for part in parts]))
        assert 0 <= drawn.min() < drawn.max() < 1
    assert len(set(torch.cat([drawn.flatten() for drawn in unsplit]).tolist())) == 7 * (3 + 4)  # streams do not overlap


def test_a_sequence_that_does_not_draw_keeps_its_place_in_its_stream():
    noise = SequenceNoise(5, [0, 1, 2])
    partial, then_all = noise.uniforms(4, rows=[0, 2]), noise.uniforms(4)
    reference = SequenceNoise(5, [0, 1, 2])
    first, second = reference.uniforms(4), reference.uniforms(4)
    assert torch.equal(partial, first[[0, 2]])
    assert torch.equal(then_all, torch.stack([second[0], first[1], second[2]]))


@pytest.mark.parametrize(("shape", "axis"), [((3,), 0), ((3, 2), 0), ((2, 3), 1), ((2, 3, 4), 1)])
def test_a_padded_sequence_draws_the_same_numbers_as_without_padding(shape, axis):
    lengths = [3, 2]
    padded = SequenceNoise(5, [0, 1], lengths=lengths)
    for name in ("uniforms", "normals"):
        for row, drawn in enumerate(getattr(padded, name)(*shape, positions=axis)):
            unpadded = [lengths[row] if n == axis else size for n, size in enumerate(shape)]
            alone = SequenceNoise(5, [row])
            if name == "normals":
                alone.uniforms(*unpadded)
            assert torch.equal(drawn.narrow(axis, 0, lengths[row]), getattr(alone, name)(*unpadded)[0])
            assert not drawn.narrow(axis, lengths[row], 3 - lengths[row]).any()


def test_different_seeds_give_different_streams():
    assert not torch.equal(SequenceNoise(0, [0]).uniforms(3), SequenceNoise(1, [0]).uniforms(3))
    assert len(SequenceNoise(0, [4, 5])) == 2


def test_uniforms_are_on_the_requested_device():
    assert SequenceNoise(0, [0], "meta").uniforms(2).is_meta
    assert SequenceNoise(0, [0], "meta").uniforms(2, device="cpu").is_cpu
    assert SequenceNoise(0, [0]).uniforms(2, device="meta").is_meta
