import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.models.discriminator import log_ratio_logits, num_parameters


@pytest.fixture(scope="module")
def teacher(make_dit):
    return make_dit(vocab_size=7, length=6, dropout=0.1)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(7, (3, 6), generator=named_generator("ids"))


SIGMA = torch.tensor([0.0, 1.0, 3.0])


def head_state(discriminator):
    return {name: value.clone() for name, value in discriminator.output_layer.state_dict().items()}


def equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_trunk_starts_as_an_exact_copy_of_the_teachers(make_discriminator, teacher, ids):
    discriminator = make_discriminator(teacher)
    found, expected = discriminator.state_dict(), teacher.state_dict()
    trunk = [name for name in expected if not name.startswith("output_layer.")]
    assert set(trunk) == {name for name in found if not name.startswith("output_layer.")}
    for name in trunk:
        assert torch.equal(found[name], expected[name])
        assert found[name].data_ptr() != expected[name].data_ptr()
    for of_discriminator, of_teacher in zip(
        *(net.trunk(net.vocab_embed(ids), SIGMA) for net in (discriminator, teacher)), strict=True
    ):
        assert torch.equal(of_discriminator, of_teacher)
    assert discriminator.config.dropout == 0


@pytest.mark.parametrize(("output", "shape"), [("token", (3, 6)), ("sequence", (3,))])
def test_there_is_a_logit_for_each_token_or_for_each_sequence(make_discriminator, teacher, ids, output, shape):
    logits = make_discriminator(teacher, output=output)(ids, SIGMA)
    assert logits.shape == shape
    assert logits.std() > 0


def test_a_sequence_logit_is_read_from_all_positions(make_discriminator, teacher, ids):
    discriminator = make_discriminator(teacher, output="sequence")
    logits = discriminator(ids)
    for position in range(6):
        changed = ids.clone()
        changed[:, position] = (changed[:, position] + 1) % 7
        assert (discriminator(changed) != logits).all()


@pytest.mark.parametrize("num_blocks", [0, 1, 2, None])
def test_only_head_and_last_blocks_learn(make_discriminator, teacher, ids, num_blocks):
    discriminator = make_discriminator(teacher)
    discriminator.train_last_blocks(num_blocks)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=0.1, weight_decay=0.1)
    discriminator.train()(ids, SIGMA).sum().backward()
    optimizer.step()
    changed = {name for name, value in discriminator.state_dict().items() if not torch.equal(value, before[name])}
    frozen = () if num_blocks is None else tuple(f"blocks.{number}." for number in range(2 - num_blocks))
    frozen += () if num_blocks is None else ("vocab_embed.", "sigma_map.")
    learnt = {name for name, _ in discriminator.named_parameters() if not name.startswith(frozen)}
    vectors = {name for name in before if name.endswith(("._u", "._v"))}
    assert learnt <= changed <= learnt | vectors


@pytest.mark.parametrize("num_blocks", [-1, 3])
def test_more_trainable_blocks_than_there_are_is_refused(make_discriminator, teacher, num_blocks):
    with pytest.raises(UsageError, match=rf"in \[0, 2\] for this network; got {num_blocks}"):
        make_discriminator(teacher).train_last_blocks(num_blocks)


def test_both_head_layers_have_spectral_norm_one(make_discriminator, teacher, ids, randomise):
    discriminator = randomise(make_discriminator(teacher), seed=3, scale=4.0).train()
    for _ in range(100):  # each pass in training mode is one power iteration
        discriminator(ids)
    for layer in (discriminator.output_layer.main[0], discriminator.output_layer.main[2]):
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=1e-3)
        assert torch.linalg.matrix_norm(layer.parametrizations.weight.original, ord=2) > 2


@pytest.mark.parametrize("is_training", [True, False])
def test_scoring_leaves_the_discriminator_as_it_was(make_discriminator, teacher, ids, is_training):
    discriminator = make_discriminator(teacher).train(is_training)
    before = head_state(discriminator)
    first = log_ratio_logits(discriminator, ids, SIGMA)
    assert equal(before, head_state(discriminator))
    assert discriminator.training == is_training
    assert torch.equal(log_ratio_logits(discriminator, ids, SIGMA), first)
    assert not first.requires_grad
    discriminator.train()(ids, SIGMA)
    assert not equal(before, head_state(discriminator))  # what scoring has to avoid


def test_scoring_restores_the_mode_after_an_error(make_discriminator, teacher):
    discriminator = make_discriminator(teacher).train()
    with pytest.raises(IndexError):
        log_ratio_logits(discriminator, torch.full((1, 6), 99), SIGMA[:1])
    assert discriminator.training


def test_only_a_discriminator_conditioned_on_time_reads_the_noise_level(make_discriminator, teacher, ids):
    conditioned, plain = (make_discriminator(teacher, is_time_conditioned=flag) for flag in (True, False))
    process, t = Absorbing(6), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    told = [log_ratio_logits(network, ids, process.noise_level(network, t)) for network in (conditioned, plain)]
    assert torch.equal(told[0], conditioned(ids, -(1 - t).log().float()))
    assert torch.equal(told[1], plain(ids))
    assert not torch.equal(told[0], conditioned(ids))


def test_power_iteration_vectors_are_not_parameters(make_discriminator, teacher):
    discriminator = make_discriminator(teacher)
    head = 16 * 16 + 16 + 16 + 1
    trunk = num_parameters(teacher) - num_parameters(teacher.output_layer)
    assert num_parameters(discriminator) == trunk + head
