"""Parts of a bundle from a checkpoint and the flags of ``didi convert``: weights, tokenizer, number of moves."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer
from torch import Tensor

from didi.data.text import load_tokenizer
from didi.errors import UsageError
from didi.models.bundle import Bundle
from didi.models.bundle_fit import is_maskless, tokenizer_for
from didi.models.convert import averaged_weights
from didi.models.foreign import Checkpoint, read_checkpoint
from didi.models.untrusted import read_tokenizer

GPT2_WITH_MASK = 50258  # vocabulary size of the public text checkpoints
DISCRIMINATOR_FILE = "discriminator.safetensors"


def refuse_unread(flags: object, layout: str, unread: Mapping[str, str]) -> None:
    """Refuse flags of ``didi convert`` that other layouts read and this one does not.

    Args:
        flags: The parsed command.
        layout: Name of the layout, for messages.
        unread: Reasons by name of the flag.

    Raises:
        UsageError: One of the flags is given.
    """
    for name, reason in unread.items():
        value = getattr(flags, name)
        if value is not None and value is not False:  # 0 == False, and a flag of 0 is given
            flag = name.replace("_", "-")
            raise UsageError(f"didi convert {layout} does not read --{flag}, since {reason}: leave it out")


def first_given(*values: Any) -> Any:
    """The first value that is not None; 0 is a value."""
    return next((value for value in values if value is not None), None)


def positive_integer(name: str, value: Any) -> int:
    """Check that a setting is a whole number, 1 or more.

    Raises:
        UsageError: The value is not.
    """
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} is a whole number, 1 or more; got {value!r}")
    return value


def check_vocabulary(file: Path, expected: Sequence[str], *, name: str) -> None:
    """Refuse a checkpoint whose ``vocab.txt``, if it has one, has other symbols.

    Args:
        file: The ``vocab.txt``, which may be missing.
        expected: Symbols in the order of their ids.
        name: Name of the network, for messages.

    Raises:
        UsageError: The symbols differ.
    """
    if not file.is_file():
        return
    vocabulary = file.read_text(encoding="utf-8").split()
    if vocabulary != list(expected):
        raise UsageError(f"the vocabulary of {name} is {' '.join(expected)}; {file} has {' '.join(vocabulary)[:300]}")


def intended_nfe(nfe: int | None, checkpoint: Checkpoint, role: str) -> int | None:
    """Number of moves that a student was trained for: ``--nfe``, else that of ``config.json``; None without either.

    Raises:
        UsageError: The number is not 1 or more, or ``--nfe`` is given for another role.
    """
    if role != "student":
        if nfe is not None:
            raise UsageError(
                f"--nfe is the number of moves that a student was trained for; this network is a {role}: leave it out"
            )
        return None
    if nfe is not None:
        return positive_integer("nfe", nfe)
    value = checkpoint.settings.get("intended_nfe")
    return None if value is None else positive_integer("intended_nfe", value)


def network_weights(checkpoint: Checkpoint, kind: str, *, is_tied: bool) -> Mapping[str, Tensor]:
    """The weights of the network.

    Args:
        checkpoint: The checkpoint.
        kind: ``raw``, or ``ema`` for the moving average: the named tensors if the checkpoint has them, else its list.
        is_tied: Whether the head shares the matrix of the embedding.

    Raises:
        UsageError: The checkpoint has no average, or its shapes do not fit.
    """
    if kind == "raw":
        return checkpoint.weights
    if checkpoint.average:
        return checkpoint.average
    if checkpoint.shadow is None:
        raise UsageError("--weights ema is for training checkpoints, which hold both; this one holds one set: raw")
    return averaged_weights(checkpoint.weights, checkpoint.shadow, is_tied=is_tied)


def discriminator_weights(layout: str, checkpoint: Checkpoint, file: Path | None) -> Mapping[str, Tensor] | None:
    """The weights of the discriminator: from ``file``, the checkpoint, or ``discriminator.safetensors`` next to it.

    Raises:
        UsageError: The layout has no discriminator, but the checkpoint or the flags have one.
    """
    if layout != "didi":
        if checkpoint.discriminator or file is not None:
            raise UsageError(f"a discriminator is converted with its student; with the layout didi, not {layout}")
        return None
    if file is None:
        if checkpoint.discriminator:
            return checkpoint.discriminator
        file = checkpoint.folder / DISCRIMINATOR_FILE
        if not file.is_file():
            return None
    separate = read_checkpoint(str(file))
    return separate.discriminator or separate.weights


def tokenizer_of(name: str | None, checkpoint: Checkpoint, bundle: Bundle) -> Tokenizer | None:
    """The tokenizer for the networks of a bundle.

    Args:
        name: ``--tokenizer``: a name, a file, or ``none``. By default ``tokenizer.json`` next to the checkpoint, else
            that of GPT-2 for a network with its vocabulary size.
        checkpoint: The checkpoint.
        bundle: A bundle with the networks and the process.

    Raises:
        UsageError: The tokenizer does not fit the network.
        DidiError: The tokenizer cannot be fetched.
    """
    if name == "none":
        return None
    file, network = checkpoint.folder / "tokenizer.json", bundle.network()
    if name is None and file.is_file():
        tokenizer, source = read_tokenizer(file), str(file)
    elif name is not None or network.vocab_size + is_maskless(network) == GPT2_WITH_MASK:
        source = name or "gpt2"
        tokenizer = load_tokenizer(source)
    else:
        return None
    source = f"{source} (--tokenizer)"
    return tokenizer_for(tokenizer, bundle.networks(), bundle.process, source=source)
