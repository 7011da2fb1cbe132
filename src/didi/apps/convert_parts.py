"""What ``didi convert`` takes from a checkpoint and its flags: weights, discriminator, tokenizer, number of moves."""

from collections.abc import Mapping
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

GPT2_WITH_MASK = 50258  # symbols of the public text checkpoints
DISCRIMINATOR_FILE = "discriminator.safetensors"


def refuse_unread(flags: object, layout: str, unread: Mapping[str, str]) -> None:
    """Refuse flags of ``didi convert`` that other layouts read and this one does not.

    Args:
        flags: The command.
        layout: Named in messages.
        unread: The flags, each with the reason.

    Raises:
        UsageError: One is given.
    """
    for name, reason in unread.items():
        if getattr(flags, name) not in (None, False):
            flag = name.replace("_", "-")
            raise UsageError(f"didi convert {layout} does not read --{flag}, since {reason}: leave it out")


def whole(name: str, value: Any) -> int:
    """A setting that is a whole number, 1 or more.

    Raises:
        UsageError: It is something else.
    """
    if type(value) is not int or value < 1:
        raise UsageError(f"{name} is a whole number, 1 or more; got {value!r}")
    return value


def intended_nfe(asked: int | None, found: Checkpoint, role: str) -> int | None:
    """Moves that a student is meant for: those of ``--nfe``, else of ``config.json``; None if neither says.

    Raises:
        UsageError: The number is not 1 or more, or it is given for another role.
    """
    if role != "student":
        if asked is not None:
            raise UsageError(
                f"--nfe says for how many moves a student is meant; this network is a {role}: leave it out"
            )
        return None
    if asked is not None:
        return whole("nfe", asked)
    value = found.settings.get("intended_nfe")
    return None if value is None else whole("intended_nfe", value)


def network_weights(found: Checkpoint, kind: str, *, is_tied: bool) -> Mapping[str, Tensor]:
    """The weights of the network itself.

    Args:
        found: The checkpoint.
        kind: ``raw``, or ``ema`` for the moving average: the one with names where there is one, else the list.
        is_tied: The head is the embedding.

    Raises:
        UsageError: The checkpoint has no average, or one that does not fit.
    """
    if kind == "raw":
        return found.weights
    if found.average:
        return found.average
    if found.shadow is None:
        raise UsageError("--weights ema is for training checkpoints, which hold both; this one holds one set: raw")
    return averaged_weights(found.weights, found.shadow, is_tied=is_tied)


def discriminator_weights(layout: str, found: Checkpoint, file: Path | None) -> Mapping[str, Tensor] | None:
    """The weights of the discriminator: of the named file, of the checkpoint itself, or of the file beside it.

    Raises:
        UsageError: There is one, but the layout has none.
    """
    if layout != "didi":
        if found.discriminator or file is not None:
            raise UsageError(f"a discriminator is converted with its student; with the layout didi, not {layout}")
        return None
    if file is None:
        if found.discriminator:
            return found.discriminator
        file = found.folder / DISCRIMINATOR_FILE
        if not file.is_file():
            return None
    other = read_checkpoint(str(file))
    return other.discriminator or other.weights


def tokenizer_of(asked: str | None, found: Checkpoint, bundle: Bundle) -> Tokenizer | None:
    """The tokenizer that goes with the networks of a bundle.

    Args:
        asked: ``--tokenizer``: a name, a file, or ``none``; None for the one beside the checkpoint, or GPT-2's for a
            network of its size.
        found: The checkpoint.
        bundle: Its networks and process are read.

    Raises:
        UsageError: The tokenizer does not go with the network.
        DidiError: It cannot be fetched.
    """
    if asked == "none":
        return None
    beside, network = found.folder / "tokenizer.json", bundle.network()
    if asked is None and beside.is_file():
        tokenizer, source = read_tokenizer(beside), str(beside)
    elif asked is not None or network.vocab_size + is_maskless(network) == GPT2_WITH_MASK:
        source = asked or "gpt2"
        tokenizer = load_tokenizer(source)
    else:
        return None
    source = f"{source} (--tokenizer)"
    return tokenizer_for(tokenizer, bundle.networks(), bundle.process, source=source)
