"""Golden figures: what a seed gives, kept in ``golden.json`` so that a refactoring cannot change it unnoticed.

``pytest tests/golden --golden write`` records the present figures; a commit that does so says why they changed.
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
    """Compare named networks and sample sets with the recorded ones."""
    mode = request.config.getoption("--golden", default="compare")  # absent where only a folder beside was named
    golden = json.loads(FILE.read_text()) if FILE.exists() else {}

    def check(name, networks=None, tokens=None, figures=None):
        networks, tokens, figures = networks or {}, tokens or {}, figures or {}
        found = {
            "bits": {one: digest(torch.cat([v.flatten().float() for v in networks[one].state_dict().values()]))
                     for one in networks},
            "projections": {one: projection(networks[one]) for one in networks},
            "tokens": {one: digest(tokens[one]) for one in tokens},
            "figures": figures,
        }  # fmt: skip
        if mode == "write":
            golden[name] = found
            FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n")
            return
        wanted = golden[name]
        assert found["tokens"] == wanted["tokens"]
        assert found["projections"].keys() == wanted["projections"].keys()
        for one, values in found["projections"].items():
            scale = torch.tensor(wanted["projections"][one], dtype=torch.float64)
            gap = (torch.tensor(values, dtype=torch.float64) - scale).norm() / scale.norm()
            assert gap <= RELATIVE_TOLERANCE, f"weights of {one} are off by {gap:.1e}"
        assert figures == pytest.approx(wanted["figures"], rel=RELATIVE_TOLERANCE)
        if mode == "exact":
            assert found == wanted

    return check
