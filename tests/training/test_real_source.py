"""The file of a teacher pool, errors if it is damaged, and progress reports while it is drawn."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.noise import derive_seed
from didi.diffusion.schedule import Cosine
from didi.errors import DidiError, UsageError
from didi.methods import real_source
from didi.models.bundle import Bundle
from didi.process_group import ProcessGroup
from didi.sampling.generate import generate

from .distill_case import with_discriminator

POOL = with_discriminator(real_source="teacher-pool", pool_size=40, pool_nfe=4)


def test_a_pool_that_takes_long_is_reported(make_job, monkeypatch, capsys):
    seconds = iter(range(0, 4000, 4))
    monkeypatch.setattr(real_source.time, "monotonic", lambda: next(seconds))
    make_job(POOL)
    lines = capsys.readouterr().err.splitlines()
    drawn = [int(line.removeprefix("teacher pool of 40 sequences, 4 moves each: ").split("%")[0]) for line in lines]
    assert len(drawn) >= 2
    assert drawn == sorted(set(drawn))
    assert drawn[0] > 0
    assert drawn[-1] <= 100


def test_a_pool_that_is_drawn_quickly_is_not_reported(make_job, capsys):
    make_job(POOL)
    assert not capsys.readouterr().err


@pytest.mark.parametrize(("rank", "report"), [(0, "teacher pool of 40 sequences, 4 moves each: 30% drawn\n"), (1, "")])
def test_only_the_first_process_reports(unchecked, monkeypatch, capsys, rank, report):
    monkeypatch.setattr(real_source, "PROGRESS_SECONDS", 0.0)
    monkeypatch.setattr(real_source, "process_group", lambda: ProcessGroup(rank, 2))
    real_source._pool_progress(40, 4)(SimpleNamespace(indices=range(4, 8), number=2))  # 4 and half of 4, of 20
    assert capsys.readouterr().err == report


def test_a_pool_holds_samples_of_the_teacher_with_its_process(make_job, teacher, tmp_path):
    cosine = replace(teacher, process=Absorbing(teacher.teacher.mask_id, Cosine()))
    make_job(POOL, tmp_path, cosine)
    pool = load_file(tmp_path / "teacher-pool.safetensors")["tokens"]
    settings = {"num_samples": 40, "nfe": 4, "length": 8, "seed": derive_seed(POOL.seed, "pool")}
    assert torch.equal(pool, generate(cosine, **settings).tokens)
    assert not torch.equal(pool, generate(teacher, **settings).tokens)


@pytest.mark.parametrize("real_source", ["teacher-pool", "teacher-steps=2"])
def test_samples_of_the_teacher_have_the_length_of_the_run(make_job, make_dit, tmp_path, real_source):
    longer = Bundle(teacher=make_dit(vocab_size=33, length=12, seed=1))
    config = with_discriminator(real_source=real_source, pool_size=4, pool_nfe=2)
    assert make_job(config, tmp_path, longer).method._real(0, 0, 0, 3).shape == (3, config.data.length)


def test_a_truncated_teacher_pool_is_reported_with_file_and_remedy(make_job, tmp_path):
    make_job(POOL)
    file = tmp_path / "teacher-pool.safetensors"
    whole = file.read_bytes()
    for length in (0, 7, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(DidiError, match=f"{file} is damaged or not readable .*: delete it, and the next") as caught:
            make_job(POOL)
        assert not isinstance(caught.value, UsageError)
        assert "\n" not in str(caught.value)
    file.unlink()
    make_job(POOL)
    assert file.read_bytes() == whole


def test_a_teacher_pool_without_tokens_is_reported_as_damaged(make_job, tmp_path):
    (tmp_path / "teacher-pool.safetensors").write_bytes(b"\x08\0\0\0\0\0\0\0{}      ")
    with pytest.raises(
        DidiError,
        match=r"teacher-pool\.safetensors is damaged or not readable \(.*\): delete it, and the next start draws",
    ):
        make_job(POOL)
