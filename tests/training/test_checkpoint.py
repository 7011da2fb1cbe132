"""Checkpoints are loaded bit for bit; damaged ones are reported and replaced by the previous one."""

import subprocess
import sys

import pytest
import torch
from safetensors.torch import save
from torch import nn

from didi.errors import DidiError
from didi.training.checkpoint import load_latest, save_checkpoint

STATE = {
    "weights": {"a": torch.randn(3, 2), "half": torch.randn(4).bfloat16(), "step": torch.tensor(7), "none": None},
    0: [{"lr": 1e-4, "betas": [0.9, 0.999], "flag": True}, torch.empty(0, 5), torch.arange(3)],
    "text": "β",
    "transposed": torch.arange(6.0).view(2, 3).T,
}


def assert_same(first, second):
    if isinstance(first, dict):
        assert list(first) == list(second)
        for key, value in first.items():
            assert_same(value, second[key])
    elif isinstance(first, list):
        assert len(first) == len(second)
        for first_item, second_item in zip(first, second, strict=True):
            assert_same(first_item, second_item)
    elif isinstance(first, torch.Tensor):
        assert first.dtype == second.dtype
        assert torch.equal(first, second)
    else:
        assert type(first) is type(second)
        assert first == second


def write(folder, *steps, keep=10):
    return [save_checkpoint(folder, step, {"step": torch.tensor(step)}, keep=keep) for step in steps]


def test_a_loaded_state_equals_the_saved_one_bit_for_bit(tmp_path):
    save_checkpoint(tmp_path / "new", 12, STATE, keep=1)
    step, state = load_latest(tmp_path / "new")
    assert step == 12
    assert_same(STATE, state)


def test_a_loaded_optimizer_continues_bit_for_bit(tmp_path):
    def trained(network, optimizer, num_steps):
        for _ in range(num_steps):
            optimizer.zero_grad()
            network(torch.ones(1, 3)).square().sum().backward()
            optimizer.step()
        return network.weight

    def fresh():
        torch.manual_seed(0)
        network = nn.Linear(3, 3)
        return network, torch.optim.AdamW(network.parameters(), lr=0.1)

    network, optimizer = fresh()
    trained(network, optimizer, 3)
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
    save_checkpoint(tmp_path, 3, state, keep=1)
    expected = trained(network, optimizer, 2)
    _, loaded = load_latest(tmp_path)
    resumed, resumed_optimizer = fresh()
    resumed.load_state_dict(loaded["network"])
    resumed_optimizer.load_state_dict(loaded["optimizer"])
    assert torch.equal(trained(resumed, resumed_optimizer, 2), expected)


def test_tensors_that_share_memory_are_stored_separately(tmp_path):
    shared = torch.arange(4.0)
    save_checkpoint(tmp_path, 1, {"a": shared, "b": shared, "part": shared[1:]}, keep=1)
    _, state = load_latest(tmp_path)
    assert_same({"a": shared, "b": shared, "part": shared[1:]}, state)


def test_only_the_newest_checkpoints_are_kept(tmp_path):
    write(tmp_path, 8, 9, 10, 11, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "step-00000010.safetensors",
        "step-00000011.safetensors",
    ]
    assert load_latest(tmp_path)[0] == 11


def test_without_checkpoints_the_result_is_none(tmp_path):
    assert load_latest(tmp_path) is None
    assert load_latest(tmp_path / "nowhere") is None


def test_a_temporary_file_is_not_a_checkpoint(tmp_path):
    (tmp_path / ".step-00000009.safetensors.tmp").write_bytes(b"half")
    assert load_latest(tmp_path) is None


DAMAGES = {
    "empty": lambda content: b"",
    "cut": lambda content: content[:-1],
    "cut in the header": lambda content: content[:20],
    "longer": lambda content: content + b"\0",
    "a changed tensor": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "a changed structure": lambda content: content.replace(b"step", b"stop", 1),
    "no metadata": lambda content: content.replace(b"__metadata__", b"__netadata__", 1),
    "a file of another program": lambda content: save({"weight": torch.zeros(1)}),
    "zeros": lambda content: bytes(len(content)),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_reported_and_the_previous_one_loaded(tmp_path, damage, capsys):
    _, newest = write(tmp_path, 1, 2)
    newest.write_bytes(DAMAGES[damage](newest.read_bytes()))
    step, state = load_latest(tmp_path)
    assert step == 1
    assert state["step"] == 1
    assert f"{newest} is damaged" in capsys.readouterr().err


def test_a_single_changed_byte_never_leads_to_a_wrong_state(tmp_path):
    _, newest = write(tmp_path, 1, 2)
    content = newest.read_bytes()
    for position in range(len(content)):
        newest.write_bytes(content[:position] + bytes([content[position] ^ 0x04]) + content[position + 1 :])
        step, state = load_latest(tmp_path)
        # The previous checkpoint is loaded, or the newest with its correct state if the byte is padding.
        assert (step, int(state["step"])) in ((1, 1), (2, 2))


def test_a_folder_with_only_damaged_checkpoints_is_an_error(tmp_path):
    for path in write(tmp_path, 1, 2):
        path.write_bytes(b"broken")
    with pytest.raises(DidiError, match=r"every checkpoint in .* is damaged: start again in another folder"):
        load_latest(tmp_path)


@pytest.mark.slow
def test_a_full_disk_keeps_existing_checkpoints(tmp_path):
    """A limit on the file size simulates a full disk: the write fails in the middle."""
    script = f"""
import resource, signal, torch
from pathlib import Path
from didi.training.checkpoint import load_latest, save_checkpoint
save_checkpoint(Path({str(tmp_path)!r}), 1, {{"step": torch.ones(9)}}, keep=1)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, 2**16))
try:
    save_checkpoint(Path({str(tmp_path)!r}), 2, {{"step": torch.ones(2**20)}}, keep=1)
except Exception as error:
    print(type(error).__name__, error)
print(load_latest(Path({str(tmp_path)!r}))[0])
"""
    process = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    error, step = process.stdout.splitlines()
    assert error.startswith("DidiError")
    assert "make room and resume the run" in error
    assert step == "1"
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]


def test_temporary_files_of_a_killed_run_are_deleted(tmp_path):
    (tmp_path / ".step-00000009.safetensors.tmp").write_bytes(b"half")
    write(tmp_path, 1)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001.safetensors"]
