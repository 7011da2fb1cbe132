"""Judges by name. To add one, write a class with the interface of ``perplexity.Judge`` and a line in ``JUDGES``."""

import contextlib
import io
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType

import torch

from didi.data.assets import fetch
from didi.data.cache import made_folder
from didi.data.catalogue import GEMMA_PARTS
from didi.data.markov import CHAINS
from didi.errors import UsageError, suggestion
from didi.evaluation.perplexity import CausalJudge, ExactJudge, Judge, transformers_for

SMOLLM2, GEMMA = "smollm2-135m", "gemma3-270m"
Device = str | torch.device


def _exact(name: str, device: Device) -> Judge:
    """The exact likelihood under a named chain."""
    del device
    return ExactJudge(CHAINS[name](), name=name)


def _gguf(name: str, assets: Sequence[str], device: Device) -> Judge:
    """A model from a package registry; the first call converts it."""
    return _causal(name, device, partial(_gguf_folder, assets))


JUDGES: dict[str, Callable[[Device], Judge]] = {
    **{name: partial(_exact, name) for name in CHAINS},
    SMOLLM2: partial(_gguf, SMOLLM2, [SMOLLM2]),
    GEMMA: partial(_gguf, GEMMA, [f"{GEMMA}-part{number}" for number in range(1, GEMMA_PARTS + 1)]),
}
"""Functions that load a judge on a device, by name."""


def load_judge(name: str, *, device: Device = "cpu") -> Judge:
    """Load a judge by name.

    Args:
        name: one of ``JUDGES``, or any causal language model that transformers loads: a local folder or a Hub name such
            as ``gpt2-large``.
        device: device of a network judge.

    Raises:
        UsageError: there is no such model, or the name is probably a misspelt name of ``JUDGES``.
        DidiError: transformers is not installed, or the model cannot be read or reached.
    """
    if name in JUDGES:
        return JUDGES[name](device)
    nearly = suggestion(name, JUDGES, cutoff=0.75)
    if nearly and "/" not in name and not Path(name).is_dir():  # probably a typing error, not the name of a Hub model
        raise UsageError(
            f"a judge is one of {', '.join(JUDGES)}, a folder of a model of transformers, or its Hub name; got "
            f"{name!r}{nearly}"
        )
    return _causal(name, device, lambda _: name)


def _causal(name: str, device: Device, source: Callable[[ModuleType], Path | str]) -> Judge:
    """A causal language model of transformers, loaded from the folder or Hub name that ``source`` returns."""
    with transformers_for("judge", name, known=list(JUDGES)) as transformers:
        folder_or_name = source(transformers)
        model = transformers.AutoModelForCausalLM.from_pretrained(folder_or_name)
        tokenizer = transformers.AutoTokenizer.from_pretrained(folder_or_name)
    return CausalJudge(model.to(device), tokenizer, name=name)


def _gguf_folder(assets: Sequence[str], transformers: ModuleType) -> Path:
    """Folder of a safetensors copy of a GGUF file; created in half a minute if it is missing or damaged.

    Args:
        assets: names of the assets that hold the parts of the file, in order.
        transformers: the package.
    """
    parts = [fetch(asset) for asset in assets]
    return made_folder(parts[0].with_name(f"{parts[0].name}-safetensors"), partial(_convert_gguf, transformers, parts))


def _convert_gguf(transformers: ModuleType, parts: Sequence[Path], folder: Path) -> None:
    """Write the model and the tokenizer of the GGUF file whose parts are in the folders ``parts`` to ``folder``."""
    with TemporaryDirectory() as joined:
        with (Path(joined) / "model.gguf").open("wb") as file:
            for part in parts:
                file.write(next(part.glob("*.gguf*")).read_bytes())
        with contextlib.redirect_stderr(io.StringIO()):  # hides the converter's progress bar, which has no setting
            model = transformers.AutoModelForCausalLM.from_pretrained(joined, gguf_file="model.gguf")
        tokenizer = transformers.AutoTokenizer.from_pretrained(joined, gguf_file="model.gguf")
    vars(model.config).pop("quantization_config", None)  # with it saving fails, although all weights are float32 now
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
