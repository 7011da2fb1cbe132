"""The training loop: logging, validation, checkpoints, signals, resumption, and the folder of a run."""

import json
import os
import signal

import pytest
import torch

from didi.errors import DidiError, UsageError
from didi.methods.settings import LoopConfig
from didi.training.loop import Interrupted, RunFolder, autocast_dtype, run

CONFIG_YAML = "student:\n  rate: 1\ndiscriminator:\n  rate: 2\n"


class CountingJob:
    """A job whose state is the list of its steps; it can send a signal to its process or report a loss of NaN."""

    tokens_per_step = 10

    def __init__(
        self, num_steps=6, signal_at=None, signal_number=signal.SIGTERM, signal_in_validation=False, bad_at=None
    ):
        self.num_steps = num_steps
        self.signal_at, self.signal_number = signal_at, signal_number
        self.signal_in_validation = signal_in_validation
        self.bad_at = bad_at
        self.done = []
        self.num_validations = 0

    def step(self, step):
        self.done.append(step)
        if step == self.signal_at:
            os.kill(os.getpid(), self.signal_number)
        return {"loss": torch.tensor(float("nan") if step == self.bad_at else step), "rate": float(step)}

    def validate(self):
        self.num_validations += 1
        if self.signal_in_validation:
            os.kill(os.getpid(), signal.SIGINT)
        return {"validation": float(self.num_validations)}

    def state_dict(self):
        return {"done": self.done}

    def load_state_dict(self, state):
        self.done = list(state["done"])


@pytest.fixture
def folder(tmp_path):
    folder = RunFolder(tmp_path / "run")
    folder.prepare(CONFIG_YAML, resume=False)
    return folder


def loop_config(**changes):
    return LoopConfig(**{"log_every": 2, "validate_every": 3, "checkpoint_every": 2, "keep_checkpoints": 9} | changes)


def rows(folder):
    return [json.loads(line) for line in folder.metrics.read_text().splitlines()]


def checkpoints(folder):
    return sorted(int(path.stem.removeprefix("step-")) for path in folder.checkpoints.iterdir())


def test_a_run_logs_means_validates_and_saves_at_its_intervals(folder):
    job = CountingJob(num_steps=5)
    run(job, loop_config(), folder, resume=False)
    assert job.done == [0, 1, 2, 3, 4]
    logged = [(row["step"], row["loss"], row["rate"]) for row in rows(folder) if "loss" in row]
    assert logged == [(2, 0.5, 0.5), (4, 2.5, 2.5), (5, 4, 4)]
    assert [(row["step"], row["validation"]) for row in rows(folder) if "validation" in row] == [(3, 1), (5, 2)]
    assert all(row["tokens_per_second"] > 0 for row in rows(folder) if "loss" in row)
    assert checkpoints(folder) == [2, 4, 5]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_after_the_step_with_its_state_saved(folder, number):
    job = CountingJob(signal_at=2, signal_number=number)
    before = signal.getsignal(number)
    with pytest.raises(Interrupted, match=r"stopped at step 3 of 6, saved$"):
        run(job, loop_config(), folder, resume=False)
    assert checkpoints(folder) == [2, 3]
    assert rows(folder)[-1]["step"] == 3
    assert signal.getsignal(number) is before


def test_a_signal_during_validation_stops_the_run_with_its_state_saved(folder):
    with pytest.raises(Interrupted, match=r"stopped at step \d of 6, saved") as caught:
        run(CountingJob(signal_in_validation=True), loop_config(checkpoint_every=100), folder, resume=False)
    assert checkpoints(folder) == [int(str(caught.value).split()[3])]


def test_a_signal_in_the_last_step_is_no_interruption(folder):
    job = CountingJob(signal_at=5)
    run(job, loop_config(), folder, resume=False)
    assert checkpoints(folder)[-1] == 6


def test_a_second_signal_stops_at_once(folder):
    class Stuck(CountingJob):
        def step(self, step):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)
            return super().step(step)

    job = Stuck()
    with pytest.raises(KeyboardInterrupt):
        run(job, loop_config(), folder, resume=False)
    assert job.done == []


def test_a_resumed_run_goes_on_from_the_newest_checkpoint_and_rewrites_later_lines(folder):
    with pytest.raises(Interrupted):
        run(CountingJob(signal_at=2), loop_config(), folder, resume=False)
    with folder.metrics.open("a") as file:
        file.write(json.dumps({"step": 4, "loss": -1.0}) + "\n" + '{"step": 5, "lo')  # a kill between checkpoints
    job = CountingJob()
    run(job, loop_config(), folder, resume=True)
    assert job.done == [0, 1, 2, 3, 4, 5]
    assert [row["step"] for row in rows(folder) if "loss" in row] == [2, 3, 4, 6]
    assert all(row.get("loss") != -1.0 for row in rows(folder))


def test_a_finished_run_that_is_resumed_does_nothing(folder):
    run(CountingJob(), loop_config(), folder, resume=False)
    before = folder.metrics.read_text()
    job = CountingJob()
    run(job, loop_config(), folder, resume=True)
    assert job.done == [0, 1, 2, 3, 4, 5]
    assert job.num_validations == 0
    assert folder.metrics.read_text() == before


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(folder):
    with pytest.raises(DidiError, match="loss is not finite in 1 of the steps up to 4; the last checkpoint is kept"):
        run(CountingJob(bad_at=3), loop_config(), folder, resume=False)
    assert checkpoints(folder) == [2]


def test_divergence_before_the_first_checkpoint_mentions_no_checkpoint(folder):
    with pytest.raises(
        DidiError, match="loss is not finite in 1 of the steps up to 2; there is no checkpoint yet: start again"
    ):
        run(CountingJob(bad_at=1), loop_config(), folder, resume=False)
    job = CountingJob()
    job.validate = lambda: {"validation_nelbo": float("nan")}
    with pytest.raises(DidiError, match="nor a bundle is saved: lower"):
        run(job, loop_config(checkpoint_every=6), folder, resume=False)
    assert not folder.has_checkpoint


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_validation_that_is_not_finite_ends_the_run_before_it_is_saved(folder, value):
    class Diverging(CountingJob):
        def validate(self):
            return {"finite": 1.0, "validation_nelbo": value if len(self.done) == 6 else 1.0}

    with pytest.raises(
        DidiError,
        match=r"validation_nelbo is not finite after step 6, so that neither .* is saved; earlier checkpoints",
    ):
        run(Diverging(), loop_config(), folder, resume=False)
    assert checkpoints(folder) == [2, 4]
    assert folder.has_checkpoint
    assert [row["validation_nelbo"] for row in rows(folder) if "validation_nelbo" in row] == [1.0, None]
    assert "NaN" not in folder.metrics.read_text()


@pytest.mark.parametrize("line", ["notes", "[1, 2]", '{"loss": 1}', '{"step": "3"}', '{"step": true}', "NaN", "\0"])
def test_a_line_of_metrics_that_no_run_wrote_is_named(folder, line):
    folder.metrics.write_text(f'{{"step": 1}}\n{line}\n{{"step": 2}}\n')
    before = folder.metrics.read_bytes()
    with pytest.raises(UsageError, match=r"metrics\.jsonl is a JSON object with an integer step; line 2 is "):
        folder.cut_metrics(2)
    assert folder.metrics.read_bytes() == before
    folder.metrics.write_text(f'{{"step": 1}}\n{line}')  # the last line, which a kill may cut
    folder.cut_metrics(2)
    assert folder.metrics.read_text() == '{"step": 1}\n'


def test_a_line_of_metrics_that_is_not_text_is_named(folder):
    folder.metrics.write_bytes(b'\xff\xfe\n{"step": 2}\n')
    with pytest.raises(UsageError, match="line 1 is"):
        folder.cut_metrics(2)


def test_a_run_that_has_not_begun_may_be_started_with_other_settings(folder):
    folder.prepare("rate: 9\n", resume=False, overwrite=True)
    assert (folder.path / "config.yaml").read_text() == "rate: 9\n"


def test_a_new_run_refuses_the_folder_of_another_run(folder):
    folder.log({"step": 1})
    with pytest.raises(
        UsageError, match="holds a run: add --resume to continue it, --overwrite to replace it, or choose another"
    ):
        folder.prepare(CONFIG_YAML, resume=False)
    folder.prepare(CONFIG_YAML, resume=True)
    assert (folder.path / "config.yaml").read_text() == CONFIG_YAML


def test_a_folder_with_only_checkpoints_holds_a_run(tmp_path):
    folder = RunFolder(tmp_path)
    run(CountingJob(), loop_config(), folder, resume=False)
    folder.metrics.unlink()
    with pytest.raises(UsageError, match="holds a run"):
        folder.prepare(CONFIG_YAML, resume=False)


def test_resume_without_a_run_is_refused(tmp_path):
    folder = RunFolder(tmp_path / "deep" / "run")
    with pytest.raises(UsageError, match=r"--resume continues a run; .*run holds none: leave --resume out"):
        folder.prepare(CONFIG_YAML, resume=True)
    assert not folder.path.exists()


def test_a_run_that_was_killed_before_its_first_line_is_resumed_with_its_settings(folder):
    with pytest.raises(UsageError, match="a resumed run keeps its settings"):
        folder.prepare("rate: 9\n", resume=True)
    folder.prepare(CONFIG_YAML, resume=True)
    job = CountingJob()
    run(job, loop_config(), folder, resume=True)
    assert len(job.done) == 6


@pytest.mark.parametrize(
    "changed",
    [
        "student:\n  rate: 3\ndiscriminator:\n  rate: 2\n",
        "student:\n  rate: 1\n",
        CONFIG_YAML + "extra: 1\n",
        "student:\n  rate: 2\ndiscriminator:\n  rate: 1\n",  # the same lines in another order
        "student:\n  rate: 2\ndiscriminator:\n  rate: 2\n",
    ],
)
def test_a_resumed_run_keeps_its_settings(folder, changed):
    folder.log({"step": 1})
    with pytest.raises(UsageError, match="a resumed run keeps its settings"):
        folder.prepare(changed, resume=True)
    assert (folder.path / "config.yaml").read_text() == CONFIG_YAML


def test_the_setting_that_changed_is_named(folder):
    folder.log({"step": 1})
    with pytest.raises(UsageError, match=r"student\.rate was 1 and is 3: give"):
        folder.prepare("student:\n  rate: 3\ndiscriminator:\n  rate: 2\n", resume=True)


def test_a_step_that_may_be_skipped_is_counted_and_left_out_of_the_means(folder):
    run(CountingJob(bad_at=3), loop_config(max_skipped_steps=1), folder, resume=False)
    assert checkpoints(folder) == [2, 4, 6]
    row = next(row for row in rows(folder) if row["step"] == 4 and "loss" in row)
    assert (row["loss"], row["rate"], row["skipped_steps"]) == (2, 2, 1)
    assert all("skipped_steps" not in row for row in rows(folder) if row["step"] != 4)


def test_a_metric_is_the_mean_over_the_steps_that_report_it(folder):
    class Late(CountingJob):
        def step(self, step):
            return super().step(step) | ({"late": torch.tensor(5.0)} if step % 2 else {})

    run(Late(), loop_config(), folder, resume=False)
    assert {row["late"] for row in rows(folder) if "late" in row} == {5}


def test_a_second_process_is_refused_while_a_run_holds_the_lock_of_its_folder(folder):
    with folder.locked(), pytest.raises(UsageError, match="another process is running in"), folder.locked():
        pass
    with folder.locked():  # free again
        pass


def test_autocast_on_a_cpu_is_used_only_for_precision_bf16():
    cpu = torch.device("cpu")
    assert autocast_dtype("auto", cpu) is None
    assert autocast_dtype("float32", cpu) is None
    assert autocast_dtype("bf16", cpu) is torch.bfloat16
