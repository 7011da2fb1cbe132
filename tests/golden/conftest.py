"""Recorded results of fixed seeds in ``golden.json``; a refactoring must not change them.

``pytest tests/golden --golden write`` records the present results; a commit that does so says why they changed.
``--golden exact`` compares digests of every bit, which hold on one kind of processor only. By default tokens are
compared exactly and weights within the rounding of another processor.
"""

import hashlib
import json
from pathlib import Path

import pytest
import torch

FILE = Path(__file__).with_name("golden.json")
RELATIVE_TOLERANCE = 4e-4  # of the norm of a projection: 1.8e-4 between AMD and Intel, 1e-3 or more for a changed sign


def pytest_addoption(parser):
    parser.addoption("--golden", choices=("compare", "exact", "write"), default="compare")


def digest(tensor):
    """SHA-256 of the bits of a tensor, hexadecimal."""
    return hashlib.sha256(tensor.contiguous().view(-1).view(torch.uint8).numpy().tobytes()).hexdigest()[:16]


def projection(network):
    """Eight fixed random projections of all floating-point weights of a network, float64."""
    weights = torch.cat([value.double().flatten() for value in network.state_dict().values()])
    generator = torch.Generator().manual_seed(0)
    return [float(weights @ torch.randn(len(weights), dtype=torch.float64, generator=generator)) for _ in range(8)]


@pytest.fixture
def matches(request):
    """Function that compares networks, samples and figures with the recorded ones, or records them."""
    mode = request.config.getoption("--golden", default="compare")  # absent if pytest was started with other folders
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}

    def check(name, networks=None, tokens=None, figures=None):
        networks, tokens, figures = networks or {}, tokens or {}, figures or {}
        computed = {
            "bits": {key: digest(torch.cat([v.flatten().float() for v in networks[key].state_dict().values()]))
                     for key in networks},
            "projections": {key: projection(networks[key]) for key in networks},
            "tokens": {key: digest(tokens[key]) for key in tokens},
            "figures": figures,
        }  # fmt: skip
        if mode == "write":
            golden[name] = computed
            FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
            return
        recorded = golden[name]
        assert computed["tokens"] == recorded["tokens"]
        assert computed["projections"].keys() == recorded["projections"].keys()
        for key, values in computed["projections"].items():
            expected = torch.tensor(recorded["projections"][key], dtype=torch.float64)
            error = (torch.tensor(values, dtype=torch.float64) - expected).norm() / expected.norm()
            assert error <= RELATIVE_TOLERANCE, f"the weights of {key} have a relative error of {error:.1e}"
        assert figures == pytest.approx(recorded["figures"], rel=RELATIVE_TOLERANCE)
        if mode == "exact":
            assert computed == recorded

    return check
