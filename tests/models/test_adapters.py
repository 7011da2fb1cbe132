"""LoRA adapters of students and discriminators: trained and shared weights, merging and copies."""

import pytest
import torch

from didi.errors import UsageError
from didi.models.adapters import adapt, copy_sharing_frozen, merged
from didi.models.discriminator import Discriminator

SIGMA = torch.tensor([0.0, 2.0])


@pytest.fixture
def teacher(make_dit):
    return make_dit(vocab_size=7, length=6, num_blocks=3, is_time_conditioned=True).requires_grad_(False)


@pytest.fixture
def ids():
    return torch.randint(7, (2, 6), generator=torch.Generator().manual_seed(0))


def trained_parameters(network):
    return {name: parameter for name, parameter in network.named_parameters() if parameter.requires_grad}


def storages(network):
    """Addresses of all parameters; networks that share weights have common addresses."""
    return {parameter.data_ptr() for parameter in network.parameters()}


def test_a_new_student_equals_the_teacher_and_shares_its_weights(teacher, ids):
    student = copy_sharing_frozen(teacher)
    adapt(student, 2)
    assert torch.equal(student(ids, SIGMA), teacher(ids, SIGMA))
    assert storages(teacher) <= storages(student)
    assert all("lora_" in name for name in trained_parameters(student))
    linear = [name for name, module in teacher.named_modules() if isinstance(module, torch.nn.Linear)]
    adapted = {name.split(".lora_")[0] for name in trained_parameters(student)}
    assert adapted == {name for name in linear if not name.startswith("sigma_map")}
    assert not any(parameter.requires_grad for parameter in teacher.parameters())


@pytest.mark.parametrize("num_blocks", [0, 1, None])
def test_a_discriminator_trains_its_head_and_adapters_of_the_last_blocks(teacher, ids, num_blocks):
    torch.manual_seed(0)
    discriminator = Discriminator.from_denoiser(teacher, shares_trunk=True)
    hidden = discriminator.trunk.hidden_states(discriminator.embed(ids), SIGMA)
    assert torch.equal(hidden, teacher.hidden_states(teacher.embed(ids), SIGMA))
    adapt(discriminator, 2, num_blocks)
    head = {name for name in trained_parameters(discriminator) if name.startswith("output_layer.")}
    assert head == {name for name, _ in discriminator.named_parameters() if name.startswith("output_layer.")}
    blocks = {int(name.split(".")[2]) for name in trained_parameters(discriminator).keys() - head}
    assert blocks == set(range(3 - (3 if num_blocks is None else num_blocks), 3))
    assert storages(teacher) & storages(discriminator)
    assert discriminator(ids, SIGMA).isfinite().all()


def test_merging_gives_a_network_without_adapters_and_the_same_outputs(teacher, ids):
    student = copy_sharing_frozen(teacher)
    assert merged(student) is student
    adapt(student, 2)
    with torch.no_grad():
        for parameter in trained_parameters(student).values():
            parameter.normal_(std=0.1, generator=torch.Generator().manual_seed(1))
    before = student(ids, SIGMA)
    assert not torch.allclose(before, teacher(ids, SIGMA), atol=1e-2)
    plain = merged(student)
    assert plain.state_dict().keys() == teacher.state_dict().keys()
    assert vars(plain).keys() == vars(teacher).keys()
    torch.testing.assert_close(plain(ids, SIGMA), before)
    assert not storages(plain) & storages(teacher)
    assert torch.equal(student(ids, SIGMA), before)


def test_a_copy_shares_frozen_weights_only(teacher):
    student = copy_sharing_frozen(teacher)
    adapt(student, 2)
    copied = copy_sharing_frozen(student)
    for name, parameter in student.named_parameters():
        other = copied.get_parameter(name)
        assert torch.equal(parameter, other)
        assert (parameter is other) == (not parameter.requires_grad)


def test_too_many_blocks_are_refused(teacher):
    with pytest.raises(UsageError, match=r"lie in \[0, 3\] for this network; got 4"):
        adapt(Discriminator.from_denoiser(teacher, shares_trunk=True), 2, 4)
