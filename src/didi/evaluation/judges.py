"""The judges by name. A new one is a class with the contract of ``perplexity.Judge`` and one line in ``JUDGES``."""

import contextlib
import io
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType

import torch

from didi.data.assets import fetch
from didi.data.cache import made_folder
from didi.data.markov import WORLDS
from didi.errors import UsageError, suggestion
from didi.evaluation.perplexity import CausalJudge, ExactJudge, Judge, transformers_for

SMOLLM2 = "smollm2-135m"
Device = str | torch.device


def _exact(world: str, device: Device) -> Judge:
    """The likelihood of the chain of a world, which needs no network."""
    del device
    return ExactJudge(WORLDS[world](), name=world)


def _smollm2(device: Device) -> Judge:
    """SmolLM2-135M from a package registry, converted once."""
    return _causal(SMOLLM2, device, _smollm2_folder)


JUDGES: dict[str, Callable[[Device], Judge]] = {world: partial(_exact, world) for world in WORLDS} | {SMOLLM2: _smollm2}
"""For each name, what loads the judge on a device."""


def load_judge(name: str, *, device: Device = "cpu") -> Judge:
    """The judge called ``name``.

    Args:
        name: one of ``JUDGES``, or any causal language model that transformers loads: a local folder or a Hub name such
            as ``gpt2-large``.
        device: where a network judge runs.

    Raises:
        UsageError: there is no such model, or the name is nearly that of a judge.
        DidiError: transformers is not installed, or the model cannot be read or reached.
    """
    if name in JUDGES:
        return JUDGES[name](device)
    nearly = suggestion(name, JUDGES, cutoff=0.75)
    if nearly and "/" not in name and not Path(name).is_dir():  # a slip of the keys, not the name of a Hub model
        raise UsageError(
            f"a judge is one of {', '.join(JUDGES)}, a folder of a model of transformers, or its Hub name; got "
            f"{name!r}{nearly}"
        )
    return _causal(name, device, lambda _: name)


def _causal(name: str, device: Device, source: Callable[[ModuleType], Path | str]) -> Judge:
    """The causal language model of transformers in the folder, or of the Hub name, that ``source`` gives."""
    with transformers_for("judge", name, known=list(JUDGES)) as transformers:
        found = source(transformers)
        model = transformers.AutoModelForCausalLM.from_pretrained(found)
        tokenizer = transformers.AutoTokenizer.from_pretrained(found)
    return CausalJudge(model.to(device), tokenizer, name=name)


def _smollm2_folder(transformers: ModuleType) -> Path:
    """A safetensors copy of the GGUF judge beside its asset; made in half a minute if it is not there or damaged."""
    asset = fetch(SMOLLM2)
    return made_folder(asset.with_name(f"{asset.name}-safetensors"), partial(_convert_gguf, transformers, asset))


def _convert_gguf(transformers: ModuleType, asset: Path, folder: Path) -> None:
    """Write the model and the tokenizer of the GGUF file in ``asset`` to ``folder``."""
    gguf = next(asset.glob("*.gguf")).name
    with contextlib.redirect_stderr(io.StringIO()):  # the converter's bar, which no setting turns off
        model = transformers.AutoModelForCausalLM.from_pretrained(asset, gguf_file=gguf)
    tokenizer = transformers.AutoTokenizer.from_pretrained(asset, gguf_file=gguf)
    vars(model.config).pop("quantization_config", None)  # all weights are float32 by now; said so, it can be saved
    plain = type(model)(model.config)
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
