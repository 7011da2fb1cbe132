"""Several processes: results equal to those of one, the division of a batch, and errors of another process."""

import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from didi.apps.train import _locked_and_prepared
from didi.errors import DidiError, UsageError
from didi.methods.settings import RunConfig
from didi.models.bundle import load
from didi.process_group import ProcessGroup, init_process_group, process_group
from didi.training.distributed import check_batch_size
from didi.training.run_folder import RunFolder

SCRIPT = Path(__file__).with_name("two_processes.py")
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]


@pytest.mark.slow
def test_two_processes_have_the_results_of_one(tmp_path):
    subprocess.run([*TORCHRUN, str(SCRIPT), str(tmp_path)], check=True, capture_output=True, timeout=300)
    (tmp_path / "alone").mkdir()
    alone = runpy.run_path(str(SCRIPT))["results"](tmp_path / "alone")
    first, second = (torch.load(tmp_path / f"rank-{rank}.pt") for rank in range(2))
    assert first.keys() == alone.keys()
    for name, value in alone.items():
        assert torch.equal(first[name], second[name]), name
        # If a gradient is near zero, Adam amplifies its rounding up to the step size (3e-4); this affects few numbers.
        torch.testing.assert_close(
            first[name], value, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}"
        )
        assert (first[name] - value).double().abs().mean() <= 1e-6 * max(1.0, float(value.double().abs().mean())), name
    assert torch.equal(first["tokens"], alone["tokens"])


def test_local_slices_are_contiguous_and_cover_all_rows_once():
    for size in (1, 2, 3, 7):
        slices = [list(range(10)[ProcessGroup(rank, size).local_slice(10)]) for rank in range(size)]
        assert [row for rows in slices for row in rows] == list(range(10))
        assert max(map(len, slices)) - min(map(len, slices)) <= 1


def test_a_batch_that_processes_cannot_divide_is_refused(monkeypatch):
    monkeypatch.setattr("didi.training.distributed.process_group", lambda: ProcessGroup(0, 3))
    check_batch_size(6)
    with pytest.raises(UsageError, match="a multiple of their number; got 8 and 3 processes"):
        check_batch_size(8)


@pytest.mark.parametrize(
    ("error", "kind", "message"),
    [
        (
            RuntimeError("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:537] reset"),
            DidiError,
            "another",
        ),
        (torch.distributed.DistBackendError("NCCL error"), DidiError, "another process of this run has ended"),
        (RuntimeError("a bug of didi"), RuntimeError, "bug"),
        (UsageError("/gloo/ is no recipe"), UsageError, "recipe"),
    ],
    ids=["gloo", "nccl", "other", "usage"],
)
def test_the_end_of_another_process_is_reported(monkeypatch, error, kind, message):
    monkeypatch.setenv("WORLD_SIZE", "2")
    for name, result in (("init_process_group", None), ("destroy_process_group", None), ("get_rank", 1)):
        monkeypatch.setattr(torch.distributed, name, lambda *_, result=result: result)
    with pytest.raises(kind, match=message) as caught, init_process_group():
        raise error
    assert type(caught.value) is kind
    assert process_group() == ProcessGroup()


def test_all_processes_raise_the_error_of_the_main_process(monkeypatch, tmp_path):
    refused = UsageError("another process is running in it")

    class SecondProcess(ProcessGroup):
        def all_gather_items(self, items):
            assert not items
            return [refused]

    monkeypatch.setattr("didi.apps.train.process_group", lambda: SecondProcess(1, 2))
    locked = _locked_and_prepared(RunFolder(tmp_path), RunConfig(), resume=False, overwrite=False)
    with pytest.raises(UsageError, match="another process is running in it"), locked:
        pytest.fail("the run was not refused")


@pytest.mark.slow
def test_two_processes_started_by_torchrun_train_the_student_of_one_process(tmp_path):
    flags = ["--max-steps", "3", "--loop.batch-size", "4", "--discriminator.warmup-steps", "2"]
    for name, launcher in (("one", [sys.executable]), ("two", TORCHRUN)):
        command = [*launcher, "-m", "didi", "distill", "markov", "--out", str(tmp_path / name), *flags]
        process = subprocess.run(command, check=True, capture_output=True, text=True, timeout=300)
        assert process.stdout == f"{tmp_path / name / 'bundle'}\n"
    one, two = (load(tmp_path / name / "bundle") for name in ("one", "two"))
    for a, b in zip(one.student.parameters(), two.student.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
