"""From prompts and lengths to canvases, and from tokens to texts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Int
from tokenizers import Tokenizer
from torch import Tensor

from didi.arguments import instance, listed, whole_number
from didi.diffusion.canvas import Canvas
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle
from didi.models.esm2 import Esm2Config
from didi.models.networks import DenoiserNetwork
from didi.models.tokenizer_fit import MASK


@dataclass(frozen=True)
class Frame:
    """Symbols around a sequence that are given: proteins have a begin and an end symbol, other sequences none.

    Attributes:
        before: symbols before the first position of the length that a user gives.
        after: symbols after the last one.
        pad_id: what stands at padding.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pad_id: int = 0

    @classmethod
    def of(cls, network: DenoiserNetwork | AutoregressiveLM) -> "Frame":
        """The frame of the sequences of a network."""
        shape = network.config
        if not isinstance(shape, Esm2Config):
            return cls()
        before, after = (() if one is None else (one,) for one in (shape.begin_id, shape.end_id))
        return cls(before, after, shape.pad_id)

    @property
    def num_ids(self) -> int:
        """Positions that the frame takes."""
        return len(self.before) + len(self.after)


def known_lengths(network: DenoiserNetwork | AutoregressiveLM, length: int | Sequence[int] | None) -> tuple[int, ...]:
    """Lengths of samples without their frame, checked.

    Args:
        network: has a largest length.
        length: one or several; None is the largest.

    Raises:
        UsageError: one is no whole number or does not fit into the context.
    """
    longest = network.length - Frame.of(network).num_ids
    given = [longest] if length is None else listed("length", length)
    return tuple(whole_number("length", one, low=1, high=longest) for one in given)


def framed(canvas: Canvas, frame: Frame, width: int) -> Canvas:
    """A canvas of sequences of one length with their frame, padded to ``width`` positions."""
    num_rows, ends = len(canvas), (frame.before, frame.after)
    before, after = (torch.tensor(one, dtype=torch.long).expand(num_rows, -1) for one in ends)
    num_pads = width - canvas.length - frame.num_ids
    padding = torch.full((num_rows, num_pads), frame.pad_id)
    tokens = torch.cat([before, canvas.tokens, after, padding], dim=1)
    is_free = torch.nn.functional.pad(canvas.is_free, (len(frame.before), len(frame.after) + num_pads))
    is_real = (torch.arange(width) < width - num_pads).expand(num_rows, -1)
    return Canvas(tokens, is_free, is_real, has_padding=num_pads > 0)


def canvas_from_prompt(bundle: Bundle, length: int, *, prefix: str | None = None, infill: str | None = None) -> Canvas:
    """The canvas of one sequence without its frame: free everywhere but at the prompt's tokens.

    Args:
        bundle: whose tokenizer is used.
        length: number of positions.
        prefix: text that the sequence begins with.
        infill: text in which each [MASK] is one token to fill in; positions after it are free. One space before a
            [MASK] belongs to it, since a token of text begins with its space; all other whitespace is kept.

    Raises:
        UsageError: both are given, the bundle has no tokenizer, or the prompt is longer than the sequence.
    """
    canvas = Canvas.blank(1, length)
    if prefix is not None and infill is not None:
        raise UsageError("give a prefix or an infill text, not both")
    prompt = prefix if prefix is not None else infill
    prompt = None if prompt is None else instance("a prompt", prompt, str)
    if prompt is None:
        return canvas
    if (MASK in prompt) != (infill is not None):
        raise UsageError("an infill text has a [MASK] for each token to fill in, and a prefix has none; exchange them")
    ids = encoded(bundle, prompt)
    assert bundle.tokenizer is not None
    if len(ids) > length:
        raise UsageError(f"a prompt has at most {length} tokens here; this one has {len(ids)}: shorten it")
    given = torch.tensor([ids], dtype=torch.long)
    is_free = torch.ones(1, length, dtype=torch.bool)
    is_free[:, : len(ids)] = given == bundle.tokenizer.token_to_id(MASK)
    canvas.tokens[:, : len(ids)] = given
    return Canvas.given(canvas.tokens, is_free)


def encoded(bundle: Bundle, text: str) -> list[int]:
    """Tokens of a prompt, see ``prompt_ids``.

    Raises:
        UsageError: the bundle has no tokenizer, or it lacks a word of the text.
    """
    if bundle.tokenizer is None:
        raise UsageError(f"a prompt needs a tokenizer; bundle {bundle.name} has none: leave the prompt out")
    try:
        return prompt_ids(bundle.tokenizer, text)
    except UsageError:
        raise
    except Exception as error:  # of tokenizers, which has no narrower one: a word-level vocabulary lacks a word
        known = ", ".join(sorted(bundle.tokenizer.get_vocab())[:3])
        raise UsageError(f"a prompt is made of this tokenizer's words ({known}, ...); got {text!r}") from error


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text in which [MASK] is a token of its own.

    A tokenizer whose [MASK] takes the whitespace before it along would take newlines too: the text between the masks is
    encoded by itself, without the one space that belongs to a mask.
    """
    *parts, last = text.split(MASK)
    if not parts:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    mask_id = tokenizer.token_to_id(MASK)
    if mask_id is None:
        raise UsageError(f"an infill text needs a tokenizer with {MASK}; this one has none: use --prefix")
    mask = tokenizer.get_added_tokens_decoder().get(mask_id)
    takes_space = mask is not None and mask.lstrip
    ids: list[int] = []
    for part in parts:
        kept = part.removesuffix(" ") if takes_space else part
        ids += [*tokenizer.encode(kept, add_special_tokens=False).ids, mask_id]
    return [*ids, *tokenizer.encode(last, add_special_tokens=False).ids]


def decode(bundle: Bundle, tokens: Int[Tensor, "n l"], lengths: Int[Tensor, " n"] | None = None) -> list[str]:
    """Texts of token sequences; the numbers themselves without a tokenizer.

    Args:
        bundle: whose tokenizer is used.
        tokens: token ids.
        lengths: positions of each sequence before its padding; None where there is no padding.
    """
    rows = tokens.tolist()
    if lengths is not None:
        rows = [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]
    if bundle.tokenizer is None:
        return [" ".join(map(str, row)) for row in rows]
    return bundle.tokenizer.decode_batch(rows, skip_special_tokens=False)
