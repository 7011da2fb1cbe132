"""The floating-point type in which weights are stored: rounding, and types and values that are refused."""

import pytest
import torch

import didi
from didi.errors import UsageError
from didi.models.stored_dtype import STORED_DTYPES, stored_weights


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.uint8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn], ids=str
)
def test_types_that_are_no_floating_point_types_of_weights_are_refused(make_dit, tmp_path, dtype):
    bundle = didi.Bundle(student=make_dit())
    with pytest.raises(UsageError, match=f"is one of torch.float32, .*; got {dtype}"):
        didi.save(bundle, tmp_path / "bundle", dtype=dtype)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("dtype", STORED_DTYPES, ids=str)
def test_loaded_weights_are_rounded_to_the_stored_type(make_dit, tmp_path, dtype):
    network = make_dit()
    loaded = didi.load(didi.save(didi.Bundle(student=network), tmp_path / "bundle", dtype=dtype)).student
    for (name, value), loaded_value in zip(network.named_parameters(), loaded.parameters(), strict=True):
        assert torch.equal(loaded_value, value.to(dtype).float()), name
    assert torch.equal(loaded.rotary_emb.inv_freq, network.rotary_emb.inv_freq)
    assert any(value.abs().max() > 0.1 for value in loaded.parameters())


def test_a_weight_that_would_become_infinite_is_refused(make_dit, tmp_path):
    network = make_dit()
    with torch.no_grad():
        network.blocks[0].attn_out.weight[0, 0] = 1e5
    with pytest.raises(
        UsageError, match=r"largest of blocks.0.attn_out.weight, 1e\+05, does not fit into torch.float16"
    ):
        didi.save(didi.Bundle(student=network), tmp_path / "bundle", dtype=torch.float16)
    assert not list(tmp_path.iterdir())
    assert stored_weights(network, torch.bfloat16)["blocks.0.attn_out.weight"].isfinite().all()
