"""The discriminator: a copy of the teacher's trunk, its head with spectral norm, trained blocks, and scoring."""

from dataclasses import asdict, dataclass

import pytest
import torch

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import named_generator
from didi.errors import UsageError
from didi.models.denoiser import Trunk
from didi.models.discriminator import SHAPES, Discriminator, log_ratio_logits, num_parameters, trunk_of


@pytest.fixture(scope="module")
def teacher(make_dit):
    return make_dit(vocab_size=7, length=6, dropout=0.1)


@pytest.fixture(scope="module")
def ids():
    return torch.randint(7, (3, 6), generator=named_generator("ids"))


SIGMA = torch.tensor([0.0, 1.0, 3.0])


def head_state(discriminator):
    return {name: value.clone() for name, value in discriminator.output_layer.state_dict().items()}


def are_equal(first, second):
    return all(torch.equal(value, second[name]) for name, value in first.items())


def test_the_trunk_starts_as_an_exact_copy_of_the_teacher(make_discriminator, teacher, ids):
    discriminator = make_discriminator(teacher)
    weights, expected = discriminator.trunk.state_dict(), teacher.state_dict()
    assert set(weights) == {name for name in expected if not name.startswith("output_layer.")}
    for name, value in weights.items():
        assert torch.equal(value, expected[name])
        assert value.data_ptr() != expected[name].data_ptr()
    hidden_states = [trunk.hidden_states(trunk.embed(ids), SIGMA) for trunk in (discriminator.trunk, teacher)]
    assert torch.equal(*hidden_states)
    assert discriminator.config.dropout == 0


@pytest.mark.parametrize(("output", "shape"), [("token", (3, 6)), ("sequence", (3,))])
def test_logits_have_the_shape_of_the_output_setting(make_discriminator, teacher, ids, output, shape):
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
def test_only_head_and_last_blocks_are_trained(make_discriminator, teacher, ids, num_blocks):
    discriminator = make_discriminator(teacher)
    discriminator.train_last_blocks(num_blocks)
    before = {name: value.clone() for name, value in discriminator.state_dict().items()}
    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=0.1, weight_decay=0.1)
    discriminator.train()(ids, SIGMA).sum().backward()
    optimizer.step()
    changed = {name for name, value in discriminator.state_dict().items() if not torch.equal(value, before[name])}
    frozen = () if num_blocks is None else tuple(f"trunk.blocks.{number}." for number in range(2 - num_blocks))
    frozen += () if num_blocks is None else ("trunk.vocab_embed.", "trunk.sigma_map.")
    trained = {name for name, _ in discriminator.named_parameters() if not name.startswith(frozen)}
    vectors = {name for name in before if name.endswith(("._u", "._v"))}
    assert trained <= changed <= trained | vectors


@pytest.mark.parametrize("num_blocks", [-1, 3])
def test_more_trainable_blocks_than_there_are_is_refused(make_discriminator, teacher, num_blocks):
    with pytest.raises(UsageError, match=rf"in \[0, 2\] for this network; got {num_blocks}"):
        make_discriminator(teacher).train_last_blocks(num_blocks)


@pytest.mark.slow
def test_both_head_layers_have_spectral_norm_one(make_discriminator, teacher, ids, randomise):
    discriminator = randomise(make_discriminator(teacher), seed=3, scale=4.0).train()
    for _ in range(100):  # each pass in training mode is one power iteration
        discriminator(ids)
    for layer in (discriminator.output_layer.main[0], discriminator.output_layer.main[2]):
        assert torch.linalg.matrix_norm(layer.weight, ord=2).item() == pytest.approx(1, abs=1e-3)
        assert torch.linalg.matrix_norm(layer.parametrizations.weight.original, ord=2) > 2


@pytest.mark.parametrize("is_training", [True, False])
def test_scoring_does_not_change_the_discriminator(make_discriminator, teacher, ids, is_training):
    discriminator = make_discriminator(teacher).train(is_training)
    before = head_state(discriminator)
    first = log_ratio_logits(discriminator, ids, SIGMA)
    assert are_equal(before, head_state(discriminator))
    assert discriminator.training == is_training
    assert torch.equal(log_ratio_logits(discriminator, ids, SIGMA), first)
    assert not first.requires_grad
    discriminator.train()(ids, SIGMA)
    assert not are_equal(before, head_state(discriminator))  # a pass in training mode does change it


def test_scoring_restores_the_mode_after_an_error(make_discriminator, teacher):
    discriminator = make_discriminator(teacher).train()
    with pytest.raises(IndexError):
        log_ratio_logits(discriminator, torch.full((1, 6), 99), SIGMA[:1])
    assert discriminator.training


def test_only_a_discriminator_conditioned_on_time_reads_the_noise_level(make_discriminator, teacher, ids):
    conditioned, plain = (make_discriminator(teacher, is_time_conditioned=flag) for flag in (True, False))
    process, t = Absorbing(6), torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    logits = [log_ratio_logits(network, ids, process.noise_level(network, t)) for network in (conditioned, plain)]
    assert torch.equal(logits[0], conditioned(ids, -(1 - t).log().float()))
    assert torch.equal(logits[1], plain(ids))
    assert not torch.equal(logits[0], conditioned(ids))


def test_power_iteration_vectors_are_not_parameters(make_discriminator, teacher):
    discriminator = make_discriminator(teacher)
    head = 16 * 16 + 16 + 16 + 1
    trunk = num_parameters(teacher) - num_parameters(teacher.output_layer)
    assert num_parameters(discriminator) == trunk + head


@dataclass(frozen=True)
class PlainShape:
    """Settings of a network that is not a DiT: an embedding and linear layers, without a noise level."""

    vocab_size: int = 7
    mask_id: int | None = 6
    length: int = 6
    hidden_size: int = 8


class Plain(torch.nn.Module):
    """A minimal trunk with the settings of ``PlainShape``."""

    is_time_conditioned = False

    def __init__(self, config):
        super().__init__()
        self.config, self.keeps_activations = config, True
        self.words = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(config.hidden_size, config.hidden_size) for _ in range(3))

    def __getattr__(self, name):
        return getattr(self.config, name) if name in PlainShape.__annotations__ else super().__getattr__(name)

    def embed(self, inputs):
        return inputs @ self.words.weight if inputs.is_floating_point() else self.words(inputs)

    def hidden_states(self, embedded, sigma=None, attention_mask=None):
        for block in self.blocks:
            embedded = embedded + block(embedded).tanh()
        return embedded


class PlainDenoiser(Plain):
    """As ``Plain``, with a vocabulary head."""

    def __init__(self, config):
        super().__init__(config)
        self.vocabulary = torch.nn.Linear(config.hidden_size, config.vocab_size)


@dataclass(frozen=True)
class PlainDiscriminatorShape(PlainShape):
    output: str = "token"

    @classmethod
    def for_denoiser(cls, shape, *, output, is_time_conditioned):
        return cls(**asdict(shape), output=output)

    def make_trunk(self):
        return Plain(self)


@pytest.mark.parametrize("shares_trunk", [False, True])
def test_a_discriminator_can_have_any_trunk(ids, monkeypatch, shares_trunk):
    denoiser = PlainDenoiser(PlainShape())
    with pytest.raises(UsageError, match="a network with DiTConfig, BertConfig, Esm2Config; got PlainShape"):
        Discriminator.from_denoiser(denoiser)
    monkeypatch.setitem(SHAPES, PlainShape, PlainDiscriminatorShape)
    discriminator = Discriminator.from_denoiser(denoiser, shares_trunk=shares_trunk)
    assert isinstance(discriminator.trunk, Trunk)
    assert trunk_of(discriminator) is discriminator.trunk
    assert trunk_of(denoiser) is denoiser
    assert trunk_of(torch.nn.Linear(2, 2)) is None
    shared = discriminator.trunk.words.weight.data_ptr() == denoiser.words.weight.data_ptr()
    assert shared == shares_trunk
    hidden = denoiser.hidden_states(denoiser.embed(ids))
    assert torch.equal(discriminator.eval()(ids), discriminator.output_layer(hidden))
    assert (discriminator.vocab_size, discriminator.mask_id, discriminator.length) == (7, 6, 6)
    discriminator.train_last_blocks(1)
    trained = {name for name, parameter in discriminator.named_parameters() if parameter.requires_grad}
    assert {name for name in trained if "blocks" in name} == {"trunk.blocks.2.weight", "trunk.blocks.2.bias"}
