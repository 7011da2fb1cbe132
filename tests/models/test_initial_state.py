"""The initial state of a one-step student: its distribution, and its storage in a bundle."""

from dataclasses import asdict

import pytest
import torch
import yaml

from didi.diffusion.canvas import Canvas
from didi.errors import UsageError
from didi.models.bundle import Bundle, load
from didi.models.initial_state import InitialState

LENGTH, VOCAB, MASK = 6, 5, 2  # [MASK] in the middle of the vocabulary


def drawn(state, canvas, seed=0):
    uniforms = torch.rand(*canvas.tokens.shape, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    return state.tokens(canvas, uniforms, MASK, VOCAB)


@pytest.mark.parametrize(("ratio", "size"), [(1.0, 6), (0.5, 3), (0.4, 2), (0.01, 1)])
def test_a_rounded_share_of_the_positions_is_masked_at_random(ratio, size):
    is_masked = drawn(InitialState(ratio), Canvas.blank(3000, LENGTH)) == MASK
    assert (is_masked.sum(1) == size).all()
    torch.testing.assert_close(
        is_masked.double().mean(0), torch.full((LENGTH,), size / LENGTH).double(), atol=0.04, rtol=0
    )


def test_the_other_tokens_are_uniform_without_the_mask(chi_square):
    tokens = drawn(InitialState(0.5), Canvas.blank(2000, LENGTH))
    assert chi_square(tokens[tokens != MASK], torch.tensor([1, 1, 0, 1, 1])) > 1e-3
    both = tokens[(tokens[:, :2] != MASK).all(1)][:, :2]  # two positions are independent
    is_possible = torch.tensor([1, 1, 0, 1, 1])
    assert chi_square(both[:, 0] * VOCAB + both[:, 1], torch.outer(is_possible, is_possible).flatten()) > 1e-3


def test_given_tokens_stay_and_shares_refer_to_free_positions():
    is_free = torch.tensor([[True, False, True, True, False, True], [False] * 6, [True] + [False] * 5])
    tokens = torch.full((3, LENGTH), 4)
    actual = drawn(InitialState(0.5), Canvas.given(tokens, is_free))
    assert (actual[~is_free] == 4).all()
    assert (actual == MASK).sum(1).tolist() == [2, 0, 1]


def test_noise_is_mixed_into_the_embeddings_of_free_positions(make_dit):
    network = make_dit(vocab_size=VOCAB, length=LENGTH)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(VOCAB, (2, LENGTH), generator=generator)
    normals = torch.randn(2, LENGTH, network.hidden_size, generator=generator)
    is_free = torch.tensor([[True] * 6, [False] * 3 + [True] * 3])
    embedded = network.embed(tokens)
    mixed = torch.where(is_free[..., None], 0.8 * embedded + 0.6 * normals, embedded)
    actual = InitialState(0.5, 0.6).features(network, tokens, is_free, normals)
    torch.testing.assert_close(actual, network.features_of_embeddings(mixed))
    assert not torch.allclose(actual[1], network.features(tokens)[1])
    torch.testing.assert_close(InitialState(0.5).features(network, tokens, is_free, None), network.features(tokens))


def test_features_of_embeddings_equal_those_of_the_tokens(make_dit):
    network = make_dit(vocab_size=VOCAB, length=LENGTH, is_time_conditioned=True)
    tokens = torch.randint(VOCAB, (2, LENGTH), generator=torch.Generator().manual_seed(0))
    sigma = torch.tensor([0.3, 2.0])
    torch.testing.assert_close(
        network.features_of_embeddings(network.embed(tokens), sigma), network.features(tokens, sigma)
    )


@pytest.mark.parametrize(
    ("values", "message"),
    [((0.0, 0.0), "mask_ratio"), ((1.1, 0.0), "mask_ratio"), ((0.5, -0.1), "noise_std"), ((0.5, 1.5), "noise_std")],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(UsageError, match=f"^{message} lies in") as caught:
        InitialState(*values)
    assert "\n" not in str(caught.value)


@pytest.fixture
def folder(make_dit, tmp_path):
    network = make_dit(vocab_size=VOCAB, length=LENGTH, mask_id=4)
    return Bundle(student=network, initial_state=InitialState(0.5, 0.1)).save_pretrained(tmp_path / "bundle")


def test_a_saved_bundle_is_loaded_with_its_initial_state(folder, make_dit, tmp_path):
    assert load(folder).initial_state == InitialState(0.5, 0.1)
    assert yaml.safe_load((folder / "bundle.yaml").read_text())["initial_state"] == asdict(InitialState(0.5, 0.1))
    plain = Bundle(student=make_dit(vocab_size=VOCAB, length=LENGTH, mask_id=4)).save_pretrained(tmp_path / "plain")
    assert "initial_state" not in yaml.safe_load((plain / "bundle.yaml").read_text())
    assert load(plain).initial_state is None


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("noise", "initial_state in .* is a mapping of settings; got 'noise'"),
        ({"mask_ration": 0.5}, "has no setting 'mask_ration'; did you mean 'mask_ratio'"),
        ({"mask_ratio": 2.0}, r"initial_state in .*: mask_ratio lies in \(0, 1\]; got 2\.0"),
    ],
)
def test_a_wrong_record_is_refused(folder, record, message):
    file = folder / "bundle.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | {"initial_state": record}))
    with pytest.raises(UsageError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)
