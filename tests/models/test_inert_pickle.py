"""Checkpoints with foreign objects: their tensors are read; nothing is imported, called or changed."""

import collections
import datetime
import enum
import functools
import io
import operator
import os
import pickle
import subprocess
import sys
import tracemalloc
import types
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer, models
from torch import nn

from didi.errors import UsageError
from didi.models.foreign import read_checkpoint
from didi.models.inert_pickle import KNOWN, Known, Placeholder, Unpickler

DATA = Path(__file__).parent / "data"
WEIGHTS = {"first": torch.arange(6.0).reshape(2, 3), "second": torch.ones(2, dtype=torch.bfloat16)}


def saved(path, **content):
    torch.save({"state_dict": WEIGHTS, **content}, path)
    return path


def read(file):
    return read_checkpoint(str(file)).weights


def assert_read(file):
    actual = read(file)
    assert list(actual) == list(WEIGHTS)
    assert all(
        torch.equal(actual[name], value) and actual[name].dtype == value.dtype for name, value in WEIGHTS.items()
    )


@pytest.mark.parametrize("version", ["2.3", "2.4"])
def test_a_checkpoint_with_the_objects_of_omegaconf_is_read(version):
    file = DATA / f"lightning-omegaconf-{version}.ckpt"
    content = zipfile.ZipFile(file).read(f"{file.stem}/data.pkl")
    for name in (b"omegaconf.dictconfig", b"collections\ndefaultdict", b"__builtin__\ndict", version.encode() + b"."):
        assert name in content
    actual = read(file)
    assert len(actual) == 21
    assert actual["vocab_embed.embedding"].shape == (5, 4)
    assert actual["vocab_embed.embedding"].abs().sum() > 0


def test_a_checkpoint_with_real_tokenizers_is_read(tmp_path):
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel({"a": 0, "[MASK]": 1}, unk_token="a"))
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, mask_token="[MASK]")
    file = saved(tmp_path / "last.ckpt", hyper_parameters={"tokenizer": wrapped, "bare": tokenizer})
    content = zipfile.ZipFile(file).read("last/data.pkl")
    assert b"transformers." in content
    assert b"tokenizers" in content
    assert_read(file)


class Names(list):
    pass


class Settings(dict):
    pass


class Kinds(set):
    pass


class Colour(enum.Enum):
    RED = 1


class Slotted:
    __slots__ = ("value",)

    def __init__(self):
        self.value = 1


class WithArguments:
    """Pickled with keyword arguments of ``__new__``."""

    def __new__(cls, *, value):
        instance = super().__new__(cls)
        instance.value = value
        return instance

    def __getnewargs_ex__(self):
        return (), {"value": self.value}


Pair = collections.namedtuple("Pair", "left right")

OBJECTS = {
    "defaultdict": collections.defaultdict(dict, {"a": {1: 2}}),
    "deque": collections.deque([1, 2, 3]),
    "counter": collections.Counter("aab"),
    "list subclass": [Names([1, 2]), Names([1])],
    "dict subclass": Settings(a=1, b=2),
    "set": {1, 2},
    "set subclass": Kinds([1, 2]),
    "enum": {Colour.RED: Colour.RED},
    "slots": Slotted(),
    "arguments": WithArguments(value=1),
    "named tuple": Pair(1, 2),
    "partial": functools.partial(operator.add, 1),
    "bound method": Path("a").joinpath,
    "function": operator.itemgetter(1),
    "classes": [int, dict, list, str, torch.nn.Linear, torch.float16],
    "numpy": [np.arange(3), np.float64(1.5), np.dtype("int32"), np.random.default_rng(0)],
    "date": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
    "bytes": [b"\x00\xff", bytearray(b"ab"), 1j, 10**40, range(3), slice(1)],
    "module": nn.Sequential(nn.Linear(2, 2), nn.SiLU()),
    "optimizer": torch.optim.AdamW([nn.Parameter(torch.ones(2))]).state_dict(),
    "tensors": [
        torch.tensor([1.0]).to(torch.float8_e4m3fn),
        torch.eye(2).to_sparse(),
        torch.ones(1, dtype=torch.uint16),
    ],
    "size": [torch.Size([1, 2]), torch.device("cpu"), torch.strided],
    "names": types.SimpleNamespace(a=1),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", OBJECTS)
def test_any_object_beside_the_weights_is_skipped(tmp_path, name, protocol):
    torch.save(
        {"hyper_parameters": {name: OBJECTS[name]}, "state_dict": WEIGHTS},
        tmp_path / "x.ckpt",
        pickle_protocol=protocol,
    )
    assert_read(tmp_path / "x.ckpt")


class Calls:
    """An object that is pickled as a call of a function."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize(
    "call",
    [
        Calls(os.mkdir, "escaped"),
        Calls(subprocess.Popen, ["touch", "escaped"]),
        Calls(eval, "__import__('os').mkdir('escaped')"),
        Calls(exec, "import os; os.mkdir('escaped')"),
        Calls(Path("escaped").touch),
        Calls(functools.partial(os.mkdir, "escaped")),
        Calls(torch.load, "payload.pt"),
        Calls(torch.storage._load_from_bytes, b"payload"),
        Calls(np.save, "escaped", 1),
    ],
    ids=lambda call: getattr(call.call[0], "__name__", "partial"),
)
def test_no_call_of_a_checkpoint_is_made(tmp_path, monkeypatch, call):
    file = saved(tmp_path / "x.ckpt", hyper_parameters=call)
    os.mkdir(tmp_path / "empty")  # noqa: PTH102
    monkeypatch.chdir(tmp_path / "empty")
    assert_read(file)
    assert not list(Path.cwd().iterdir())


def test_no_module_of_a_checkpoint_is_imported(tmp_path, monkeypatch):
    (tmp_path / "imported_by_a_checkpoint.py").write_text("class Settings: pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    import imported_by_a_checkpoint

    file = saved(tmp_path / "x.ckpt", hyper_parameters=imported_by_a_checkpoint.Settings())
    monkeypatch.delitem(sys.modules, "imported_by_a_checkpoint")
    assert_read(file)
    assert "imported_by_a_checkpoint" not in sys.modules


def test_a_pickle_changes_no_function_of_torch():
    before = dict(vars(torch._utils._rebuild_tensor_v2))
    stream = b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\nN}U\x07changedK\x01s\x86b."
    actual = Unpickler(io.BytesIO(stream)).load()
    assert isinstance(actual, Known)
    assert vars(torch._utils._rebuild_tensor_v2) == before
    plain = pickle.loads(stream)  # the same stream does change it under the usual reader
    assert plain.changed == 1
    del plain.changed


def test_a_pickle_cannot_allocate_memory():
    stream = b"\x80\x02Nr\xff\xff\xff\x00."  # None, memoised under index 2**24 - 1
    tracemalloc.start()
    assert Unpickler(io.BytesIO(stream)).load() is None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1e6


@pytest.mark.parametrize(
    "name",
    ["torch.load", "torch.nn.parameter.Parameter", "torch.storage._load_from_bytes", "builtins.dict", "os.system"],
)
def test_a_name_outside_the_table_of_known_names_becomes_a_placeholder(name):
    module, _, attribute = name.rpartition(".")
    assert Unpickler(io.BytesIO(b"")).find_class(module, attribute) is Placeholder


def test_the_table_of_known_names_has_only_what_tensors_need():
    assert {name.rpartition(".")[0] for name in KNOWN} == {"collections", "torch", "torch._utils", "torch._tensor"}
    assert len(KNOWN) == 9


class Marked(torch.Tensor):
    pass


def test_weights_of_a_subclass_or_with_attributes_are_plain_tensors(tmp_path):
    tensor, parameter = torch.ones(2), nn.Parameter(torch.ones(2))
    tensor.group = parameter.group = Settings(a=1)
    file = tmp_path / "x.ckpt"
    torch.save({"a": tensor, "b": parameter, "c": torch.ones(2).as_subclass(Marked)}, file)
    actual = read(file)
    assert all(torch.equal(value, torch.ones(2)) and not value.requires_grad for value in actual.values())
    assert all(type(value) is torch.Tensor for value in actual.values())


def test_a_file_of_the_format_before_torch_1_6_is_read(tmp_path):
    torch.save(WEIGHTS, tmp_path / "old.bin", _use_new_zipfile_serialization=False)
    assert_read(tmp_path / "old.bin")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_torchscript_archive_is_refused(tmp_path, monkeypatch):
    torch.jit.script(nn.Linear(2, 2)).save(tmp_path / "x.pt")
    monkeypatch.setattr(torch.jit, "load", lambda *_, **__: pytest.fail("it was compiled"))
    with pytest.raises(UsageError, match=r"can be read safely \(.*torchscript"):
        read(tmp_path / "x.pt")


@pytest.mark.parametrize("more", [{}, {"more": Settings()}], ids=["weights alone", "with a foreign object"])
@pytest.mark.parametrize("value", [Colour.RED, torch.eye(2).to_sparse(), torch.ones(1, device="meta"), 1.0])
def test_weights_that_are_not_dense_tensors_are_refused(tmp_path, value, more):
    torch.save({"state_dict": {"first": value}, **more}, tmp_path / "x.ckpt")
    with pytest.raises(UsageError, match="holds no state dict of dense tensors") as caught:
        read(tmp_path / "x.ckpt")
    assert "\n" not in str(caught.value)


def test_an_average_that_is_a_foreign_object_is_refused(tmp_path):
    file = saved(tmp_path / "x.ckpt", ema=Settings(shadow_params=[torch.ones(1)]))
    with pytest.raises(UsageError, match="holds an 'ema' that is an object of its code"):
        read(file)
