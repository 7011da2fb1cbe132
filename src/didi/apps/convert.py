"""``didi convert``: public checkpoints into bundles, and a bundle into the MDLM layout."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from didi.apps import convert_antiberty, convert_esm2, convert_gpt2
from didi.apps.convert_antiberty import ANTIBERTY
from didi.apps.convert_gpt2 import GPT2
from didi.apps.convert_layouts import LAYOUTS
from didi.apps.convert_parts import (
    discriminator_weights,
    first_given,
    intended_nfe,
    network_weights,
    positive_integer,
    refuse_unread,
    tokenizer_of,
)
from didi.apps.outputs import refuse_existing
from didi.apps.terminal import parse
from didi.data.blocks import BLOCK_LAYOUT, BlockLayout, block_layout_of, checked_layout
from didi.diffusion import Process, find_process
from didi.diffusion.uniform import Uniform
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role, load, save
from didi.models.convert import discriminator_from_state_dict, dit_from_state_dict, mdlm_state_dict
from didi.models.dit import DiT
from didi.models.foreign import read_checkpoint
from didi.models.weights import WEIGHTS, write_tensors, written_folder

EXPORTED = {"config.json", WEIGHTS, "tokenizer.json"}


@dataclass(frozen=True)
class ConvertCommand:
    """Make a bundle of a public checkpoint: didi convert LAYOUT SRC --out BUNDLE.

    LAYOUT is one of mdlm, duo, sdtt, sedd, didi, gpt2, esm2, dplm, antiberty. SRC is a file, a folder or a Hub
    repository OWNER/NAME; gpt2 also takes gpt2, gpt2-medium, gpt2-large, gpt2-xl and distilgpt2, and antiberty takes
    antiberty. The network of gpt2 has the role autoregressive. The opposite, from a bundle to the mdlm layout, is didi
    convert export BUNDLE --out FOLDER.
    """

    out: Path
    """Folder of the bundle."""
    overwrite: bool = False
    """Replace the bundle in --out."""
    role: Literal["teacher", "student"] | None = None
    """Role of the network in the bundle; by default student for sdtt and didi, teacher for the other layouts."""
    weights: Literal["ema", "raw"] | None = None
    """The moving average of a training checkpoint, or its raw weights; by default the average if there is one."""
    tied: bool = False
    """The head shares the embedding's matrix, as with tie_word_embeddings in config.json (gpt2: by default)."""
    num_heads: int | None = None
    """Attention heads, if neither config.json nor the rotary frequencies determine them."""
    length: int | None = None
    """Context length; by default that of config.json, else 1024 (gpt2: that of the weights; esm2 and dplm: in
    positions)."""
    tokenizer: str | None = None
    """gpt2, a tokenizer.json, a Hub name, or none; by default tokenizer.json beside the checkpoint, or gpt2 for a
    network with its vocabulary size."""
    discriminator: Path | None = None
    """didi: file of the discriminator; by default discriminator.safetensors beside the checkpoint, if it exists."""
    block_layout: BlockLayout | None = None
    """Layout of the rows that the network was trained on, also used by a distillation: bos-eos (BOS, L - 2 tokens, EOS)
    or stream; by default that of config.json, else that of the public checkpoints (sedd and gpt2: stream, others:
    bos-eos)."""
    revision: str | None = None
    """Branch, tag or commit of a Hub repository (the rounds of sdtt are revisions)."""
    nfe: int | None = None
    """Number of moves that a student was trained for, which becomes the default of didi generate; by default
    intended_nfe of config.json, else not recorded."""


@dataclass(frozen=True)
class ExportCommand:
    """Write a network of a bundle in the public MDLM layout: didi convert export BUNDLE --out FOLDER."""

    out: Path
    """New folder for config.json, model.safetensors and tokenizer.json."""
    overwrite: bool = False
    """Replace an earlier export in --out."""
    role: Role | None = None
    """Role of the network; by default student if the bundle has one."""


PROTEINS = (*convert_esm2.SCHEDULES, ANTIBERTY)
NAMES = (*LAYOUTS, GPT2, *PROTEINS)


def run_convert(args: Sequence[str]) -> None:
    """Run ``didi convert`` with the arguments after the command's name."""
    names, flags = list(args[:2]), args[2:]
    if not args:
        raise UsageError(f"didi convert takes {', '.join(NAMES)} or export first; see didi convert --help")
    if "--help" in args or "-h" in args:
        parse(ExportCommand if names[:1] == ["export"] else ConvertCommand, ["--help"], prog="didi convert LAYOUT SRC")
    if names[0] not in (*NAMES, "export"):
        raise UsageError(f"didi convert takes {', '.join(NAMES)} or export first; got {names[0]!r}")
    if len(names) < 2 or names[1].startswith("-"):
        what = "a bundle" if names[0] == "export" else "a file, a folder or a Hub repository"
        raise UsageError(f"didi convert {names[0]} takes {what} next: didi convert {names[0]} SRC --out FOLDER")
    prog = f"didi convert {names[0]} {names[1]}"
    if names[0] == "export":
        command = parse(ExportCommand, flags, prog=prog)
        print(export(load(names[1]), command.out, command.role, overwrite=command.overwrite))
    else:
        print(convert(names[0], names[1], parse(ConvertCommand, flags, prog=prog)))


def convert(layout: str, source: str, command: ConvertCommand) -> Path:
    """Convert a public checkpoint to a bundle; returns the folder of the bundle.

    Raises:
        UsageError: the checkpoint does not have that layout, a setting does not fit, or ``--out`` has a bundle and
            ``overwrite`` is False.
        DidiError: the disk is full or cannot be written.
    """
    refuse_existing(command.out, ("bundle.yaml",), overwrite=command.overwrite, what="a bundle")
    if layout == GPT2:
        return save(_gpt2_bundle(source, command), command.out)
    if layout in PROTEINS:
        return save(_protein_bundle(layout, source, command), command.out)
    return save(_diffusion_bundle(layout, source, command), command.out)


def _gpt2_bundle(source: str, command: ConvertCommand) -> Bundle:
    refuse_unread(command, GPT2, convert_gpt2.UNREAD)
    return convert_gpt2.gpt2_bundle(
        source,
        revision=command.revision,
        num_heads=command.num_heads,
        is_tied=command.tied,
        tokenizer=command.tokenizer,
        block_layout=command.block_layout,
    )


def _protein_bundle(layout: str, source: str, command: ConvertCommand) -> Bundle:
    shared: dict[str, Any] = {"revision": command.revision, "role": command.role or "teacher"}
    if layout == ANTIBERTY:
        refuse_unread(command, layout, convert_antiberty.UNREAD)
        return convert_antiberty.antiberty_bundle(source, **shared)
    refuse_unread(command, layout, convert_esm2.UNREAD)
    return convert_esm2.esm2_bundle(layout, source, num_heads=command.num_heads, length=command.length, **shared)


def _diffusion_bundle(layout: str, source: str, command: ConvertCommand) -> Bundle:
    """The bundle of a masked-diffusion or uniform-state checkpoint."""
    conventions, checkpoint = LAYOUTS[layout], read_checkpoint(source, revision=command.revision)
    settings = conventions.settings(checkpoint.settings)
    length = positive_integer("length", first_given(command.length, settings.length, 1024))
    num_heads = first_given(command.num_heads, settings.num_heads)
    num_heads = None if num_heads is None else positive_integer("num_heads", num_heads)
    is_tied = command.tied or bool(checkpoint.settings.get("tie_word_embeddings", False))
    blocks = checked_layout(command.block_layout or checkpoint.settings.get(BLOCK_LAYOUT, conventions.block_layout))
    weights = command.weights or ("raw" if checkpoint.shadow is None and not checkpoint.average else "ema")
    network = dit_from_state_dict(
        network_weights(checkpoint, weights, is_tied=is_tied),
        num_heads,
        length=length,
        is_time_conditioned=settings.is_time_conditioned,
        is_uniform=issubclass(find_process(settings.process), Uniform),
        is_tied=is_tied,
    )
    role = command.role or conventions.role
    networks: dict[str, Any] = {role: network.eval()}
    if discriminator := discriminator_weights(layout, checkpoint, command.discriminator):
        networks["discriminator"] = discriminator_from_state_dict(
            discriminator, num_heads, length=length, mask_id=network.config.mask_id
        )
    vocab_size, mask_id = network.config.vocab_size, network.config.mask_id
    process = find_process(settings.process)(vocab_size if mask_id is None else mask_id, settings.schedule)
    bundle = Bundle(
        **networks,
        process=cast(Process, process),
        intended_nfe=intended_nfe(command.nfe, checkpoint, role),
        provenance={"source": source, "layout": layout, "weights": weights, BLOCK_LAYOUT: blocks}
        | ({"revision": command.revision} if command.revision else {}),
    )
    bundle.tokenizer = tokenizer_of(command.tokenizer, checkpoint, bundle)
    return bundle


def export(bundle: Bundle, out: Path, role: Role | None = None, *, overwrite: bool = False) -> Path:
    """Write a network of a bundle in the MDLM layout, atomically; returns the folder.

    Raises:
        UsageError: the layout does not support the network, or ``out`` exists and is not an export to overwrite.
        DidiError: the disk is full or cannot be written.
    """
    network = bundle.network(role)
    if not isinstance(network, DiT):
        kind = "autoregressive" if isinstance(network, AutoregressiveLM) else "one of proteins"
        raise UsageError(f"the MDLM layout holds a diffusion transformer; the bundle's network is {kind}")
    is_export = out.is_dir() and {path.name for path in out.iterdir()} <= EXPORTED
    if out.exists() and not (overwrite and is_export):
        fix = "add --overwrite to replace it, or choose another" if is_export else "choose another"
        raise UsageError(f"--out names a new folder; {out} exists: {fix}")
    weights, shape = mdlm_state_dict(network), network.config
    config = {
        "model_type": "mdlm",
        "vocab_size": shape.vocab_size,
        "model_length": shape.length,
        "hidden_dim": shape.hidden_size,
        "cond_dim": shape.cond_dim,
        "n_blocks": shape.num_blocks,
        "n_heads": shape.num_heads,
        "dropout": shape.dropout,
        "time_conditioning": shape.is_time_conditioned,
        BLOCK_LAYOUT: block_layout_of(bundle.provenance),
    }
    if network is bundle.student and bundle.intended_nfe is not None:
        config["intended_nfe"] = bundle.intended_nfe
    with written_folder(out) as staging:
        (staging / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        write_tensors(weights, staging / WEIGHTS, metadata={"format": "pt"})
        if bundle.tokenizer is not None:
            (staging / "tokenizer.json").write_text(bundle.tokenizer.to_str(pretty=True), encoding="utf-8")
    return out
