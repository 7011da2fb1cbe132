"""Modules imported by the start of the command and by ``import didi``, each in a new process."""

import json
import os
import subprocess
import sys
from importlib.metadata import version

import pytest

HEAVY = {"torch", "tyro", "rich", "numpy", "transformers", "matplotlib", "huggingface_hub", "jaxtyping"}
OPTIONAL = {"transformers", "datasets", "peft", "matplotlib", "mauve", "scipy"}


def imported(code, *words, with_errors=False):
    """Top-level packages that a new interpreter has imported at the end of ``code``, and its output (or its errors)."""
    report = (
        "import atexit, json, sys; atexit.register(lambda: print(json.dumps(sorted(sys.modules)), file=sys.stderr))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"{report}\n{code}", *words],
        check=True,
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    output = done.stderr if with_errors else done.stdout
    return {name.split(".")[0] for name in json.loads(done.stderr.splitlines()[-1])}, output


MAIN = "from didi.apps.cli import main; main()"


@pytest.mark.parametrize("words", [[], ["--help"], ["--version"], ["assets", "--help"]])
def test_a_command_without_tensors_imports_no_heavy_package(words):
    packages, out = imported(MAIN, *words)
    assert not HEAVY & packages
    assert out.strip()


@pytest.mark.slow
def test_the_list_of_imports_has_the_packages_that_are_imported():
    packages, _ = imported("import didi; didi.load")
    assert {"didi", "torch", "numpy"} <= packages


@pytest.mark.parametrize(
    ("name", "message"),
    [("no", "a command is one of"), *((name, f"didi {name} RECIPE") for name in ("pretrain", "distill", "doctor"))],
)
def test_a_command_without_what_it_needs_is_refused_without_heavy_imports(name, message):
    code = f"""
import didi.apps.cli
try:
    {MAIN}
except SystemExit as stop:
    assert stop.code == 2
"""
    packages, err = imported(code, name, with_errors=True)
    assert not HEAVY & packages
    assert err.startswith("didi: ")
    assert message in err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["generate", "evaluate", "distill", "doctor", "compare", "reproduce", "convert"])
def test_the_help_of_a_command_imports_no_optional_package(name):
    assert not OPTIONAL & imported(MAIN, name, "--help")[0]


def test_importing_didi_imports_no_heavy_package_and_has_every_public_name():
    code = "import didi; names = dir(didi); import sys; assert 'torch' not in sys.modules; print(*names)"
    packages, out = imported(code)
    assert not HEAVY & packages
    assert {"load", "save", "generate", "evaluate", "Bundle", "__version__"} <= set(out.split())


def test_public_names_are_those_of_their_modules():
    import pickle

    import didi
    from didi import Bundle, Guidance, UsageError, load
    from didi.errors import UsageError as defined
    from didi.models import bundle as hub

    assert all(getattr(didi, name) is not None for name in didi.__all__)
    assert set(didi._MODULES) | {"__version__"} == set(didi.__all__)
    assert (Bundle, load, UsageError) == (hub.Bundle, hub.load, defined)
    assert didi.__version__ == version("didi-instruct")
    assert pickle.loads(pickle.dumps(Guidance())) == didi.Guidance()
    with pytest.raises(AttributeError, match="has no attribute 'laod'"):
        didi.laod  # noqa: B018


@pytest.mark.slow
def test_loading_a_bundle_imports_neither_dynamo_nor_sympy():
    code = """
import sys, torch, didi
torch.manual_seed(0)
before = torch.get_rng_state()
assert didi.load("tiny-news").discriminator is not None
assert torch.equal(before, torch.get_rng_state())
print(*sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""
    assert imported(code)[1].strip() == ""


@pytest.mark.slow
def test_loading_and_sampling_import_neither_dynamo_nor_sympy_nor_the_hub(tmp_path):
    code = """
import sys, dataclasses, didi
from didi.diffusion.uniform import Uniform
from didi.models.convert import dit_from_state_dict, mdlm_state_dict
from didi.models.discriminator import Discriminator
from didi.models.dit import DiT, DiTConfig

shape = DiTConfig(vocab_size=5, mask_id=4, length=4, hidden_size=8, num_blocks=1, num_heads=2, cond_dim=8)
plain, uniform = DiT(shape), DiT(dataclasses.replace(shape, mask_id=None))
kinds = [plain, DiT(dataclasses.replace(shape, conv_radius=1, is_budget_conditioned=True))]
assert dit_from_state_dict(mdlm_state_dict(plain)).config.hidden_size == 8
bundles = [didi.Bundle(student=network, discriminator=Discriminator.from_denoiser(network)) for network in kinds]
bundles += [didi.Bundle(teacher=uniform, process=Uniform(5))]
used = {"torch._dynamo", "sympy"} & set(sys.modules)
assert not used, used

folders = sys.argv[1:]
for name in ("tiny-news", "exact", "markov"):
    bundle = didi.load(name)
    for sampler in ("ancestral", "guided") if bundle.discriminator else ("ancestral",):
        didi.generate(bundle, num_samples=1, nfe=2, sampler=sampler, seed=0)
used = {"torch._dynamo", "sympy", "huggingface_hub", "transformers", "scipy"} & set(sys.modules)
assert not used, used
for bundle, folder in zip(bundles, folders, strict=True):
    didi.generate(didi.load(didi.save(bundle, folder)), num_samples=1, nfe=2, seed=0)
print(*sorted({"torch._dynamo", "sympy"} & set(sys.modules)))
"""
    assert imported(code, *(str(tmp_path / name) for name in "abc"))[1].strip() == ""


@pytest.mark.slow
def test_importing_the_trainer_does_not_import_the_modules_that_save_checkpoints():
    code = """
import sys, didi.training.trainer
print(*sorted({"torch.distributed.checkpoint", "torch.distributed.fsdp", "torch._dynamo"} & set(sys.modules)))
"""
    assert imported(code)[1].strip() == ""
