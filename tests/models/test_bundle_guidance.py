"""A bundle keeps the guidance that it was measured with; weights that are not finite are refused on load."""

from dataclasses import asdict

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from tiny_news import GUIDANCE

import didi
from didi.errors import UsageError
from didi.evaluation.plan import plan_rows
from didi.models.bundle import load
from didi.models.guidance import Guidance
from didi.sampling.options import SamplingOptions
from didi.sampling.registry import make_sampler


@pytest.fixture
def folder(folder_without_digests):
    """A bundle whose weights a test may change."""
    return folder_without_digests


def edit(folder, **changes):
    file = folder / "bundle.yaml"
    file.write_text(yaml.safe_dump(yaml.safe_load(file.read_text()) | changes))


@pytest.mark.slow
def test_a_saved_bundle_is_loaded_with_its_guidance(folder, tmp_path):
    assert load(folder).guidance is None
    assert "guidance" not in yaml.safe_load((folder / "bundle.yaml").read_text())
    bundle = load(folder)
    bundle.guidance = Guidance(num_candidates=7, select="best")
    saved = bundle.save_pretrained(tmp_path / "guided")
    assert load(saved).guidance == bundle.guidance
    assert yaml.safe_load((saved / "bundle.yaml").read_text())["guidance"] == asdict(bundle.guidance)


@pytest.mark.slow
def test_the_guidance_of_a_bundle_is_the_default_of_its_guided_sampler():
    bundle = load("tiny-news")
    assert bundle.guidance == GUIDANCE
    plain, given = SamplingOptions("guided"), SamplingOptions("guided", guidance=Guidance())
    assert make_sampler(bundle, plain, 4).guidance == GUIDANCE
    assert make_sampler(bundle, given, 4).guidance == Guidance()
    options = {"num_samples": 2, "nfe": 4, "sampler": "guided", "length": 16}
    default, expected = didi.generate(bundle, **options), didi.generate(bundle, guidance=GUIDANCE, **options)
    assert torch.equal(default.tokens, expected.tokens)
    ((_, settings, _),) = plan_rows(bundle, None, "guided", [4], [SamplingOptions()])
    assert settings.guidance == GUIDANCE


@pytest.mark.parametrize(
    ("guidance", "message"),
    [
        ("best", "guidance in .* is a mapping of settings; got 'best'"),
        ({"selct": "best"}, "has no setting 'selct'; did you mean 'select'"),
        ({"select": "worst"}, "select in guidance in .* is one of sample, best"),
        ({"num_candidates": 0}, "num_candidates is 1 or more; got 0"),
    ],
)
def test_a_wrong_guidance_is_refused(folder, guidance, message):
    edit(folder, guidance=guidance)
    with pytest.raises(UsageError, match=message) as caught:
        load(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("value", [float("nan"), float("-inf")])
@pytest.mark.parametrize("role", ["student", "discriminator", "autoregressive"])
def test_weights_that_are_not_finite_are_refused_by_name(folder, role, value):
    file = folder / role / "model.safetensors"
    weights = load_file(file)
    name = next(iter(weights))
    weights[name].view(-1)[0] = value
    save_file(weights, file)
    with pytest.raises(UsageError, match=f"weights are finite numbers; {name} in .* has NaN or infinity"):
        load(folder)
