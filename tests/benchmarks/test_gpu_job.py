"""The GPU job at toy size: every stage runs on a CPU, and the trained bundles are collected."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from collect import collect
from decode import StaticDecoder

import didi
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import SequenceNoise
from didi.errors import DidiError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.sampling.autoregressive import LeftToRight

JOB = Path(__file__).parents[2] / "benchmarks" / "gpu"


@pytest.mark.parametrize("length", [16, 15])  # in buckets, and in one
def test_decoding_with_a_static_cache_gives_the_tokens_of_a_growing_one(length, randomise):
    model = randomise(AutoregressiveLM(AutoregressiveConfig(50, 49, length, 32, 2, 4)))
    noise = SequenceNoise(0, range(5))
    *_, last = LeftToRight(model)(Canvas.blank(5, length), torch.tensor([1.0, 0.0]), noise)
    decoder = StaticDecoder(model, 5, torch.float32)
    for _ in range(2):  # the cache of the first batch is written over
        tokens = decoder(SequenceNoise(0, range(5)).uniforms(length))
    assert torch.equal(tokens, last.z)


@pytest.mark.slow
def test_the_job_runs_at_toy_size_and_its_bundles_are_collected(tmp_path):
    def call(script, *words):
        return subprocess.run([sys.executable, JOB / f"{script}.py", *map(str, words)], check=True, timeout=900)

    carried, work, out = (tmp_path / name for name in ("carried", "work", "out"))
    call("prepare", "--toy", "--carried", carried)
    stages = ["tests=280", "teacher=60", "student=280", "speed=280", "--return", "prose-bundle", "prose-student-bundle"]
    call("run", "--toy", "--carried", carried, "--work", work, "--out", out, "--stages", *stages)
    results = json.loads((out / "results.json").read_text())
    assert {name: stage["status"] for name, stage in results["ended"].items()} == dict.fromkeys(
        ("tests", "teacher", "student", "speed"), "0"
    )
    assert not [measurement for measurement in results["speed"]["found"].values() if "error" in measurement]
    assert "validation_nelbo" in results["student"]["found"]["metrics"][-1]
    assert collect(out, tmp_path / "back") == ["prose-bundle", "prose-student-bundle"]
    student = didi.load(tmp_path / "back" / "prose-student-bundle")
    assert didi.generate(student, num_samples=2, nfe=4).tokens.shape == (2, 32)
    (out / "bundles.tar.00").write_bytes(b"damaged")
    with pytest.raises(DidiError, match=r"bundles\.tar\.00 must have SHA-256"):
        collect(out, tmp_path / "again")
