"""Canvases from prompts and lengths, and texts from tokens."""

import reprlib
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
from didi.models.networks import DenoiserNetwork
from didi.models.proteins import ProteinConfig
from didi.models.tokenizer_fit import MASK


@dataclass(frozen=True)
class Frame:
    """Fixed symbols around a sequence: proteins have a begin and an end symbol, other sequences have none.

    Attributes:
        before: symbols before the sequence; a length that a user gives does not count them.
        after: symbols after the sequence.
        pad_id: symbol at padding.
    """

    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()
    pad_id: int = 0

    @classmethod
    def of(cls, network: DenoiserNetwork | AutoregressiveLM) -> "Frame":
        """The frame of the sequences of a network."""
        config = network.config
        if not isinstance(config, ProteinConfig):
            return cls()
        before, after = (() if symbol is None else (symbol,) for symbol in (config.begin_id, config.end_id))
        return cls(before, after, config.pad_id)

    @property
    def num_ids(self) -> int:
        """Number of symbols of the frame."""
        return len(self.before) + len(self.after)


def checked_lengths(network: DenoiserNetwork | AutoregressiveLM, length: int | Sequence[int] | None) -> tuple[int, ...]:
    """Lengths of samples without their frame, as whole numbers in range.

    Args:
        network: network whose context limits the lengths.
        length: one or several lengths; None is the largest.

    Raises:
        UsageError: a length is not a whole number or does not fit in the context.
    """
    longest = network.length - Frame.of(network).num_ids
    lengths = [longest] if length is None else listed("length", length)
    return tuple(whole_number("length", value, low=1, high=longest) for value in lengths)


def framed(canvas: Canvas, frame: Frame, width: int) -> Canvas:
    """The sequences of a canvas without padding, with their frame, padded to ``width`` positions."""
    num_rows = len(canvas)
    before, after = (
        torch.tensor(symbols, dtype=torch.long).expand(num_rows, -1) for symbols in (frame.before, frame.after)
    )
    num_pads = width - canvas.length - frame.num_ids
    padding = torch.full((num_rows, num_pads), frame.pad_id)
    tokens = torch.cat([before, canvas.tokens, after, padding], dim=1)
    is_free = torch.nn.functional.pad(canvas.is_free, (len(frame.before), len(frame.after) + num_pads))
    is_real = (torch.arange(width) < width - num_pads).expand(num_rows, -1)
    return Canvas(tokens, is_free, is_real, has_padding=num_pads > 0)


def canvas_from_prompt(bundle: Bundle, length: int, *, prefix: str | None = None, infill: str | None = None) -> Canvas:
    """The canvas of one sequence without its frame; all positions are free except the tokens of the prompt.

    Args:
        bundle: bundle with the tokenizer.
        length: number of positions.
        prefix: text that the sequence begins with.
        infill: text in which each [MASK] is one token to fill in; positions after the text are free. One space before
            a [MASK] is removed, because tokens of text begin with a space; all other whitespace is kept.

    Raises:
        UsageError: both are given, a prefix has a [MASK], an infill text has none, the bundle has no tokenizer, or the
            prompt is longer than the sequence.
    """
    canvas = Canvas.blank(1, length)
    if prefix is not None and infill is not None:
        raise UsageError("give a prefix or an infill text, not both")
    prompt = prefix if prefix is not None else infill
    prompt = None if prompt is None else instance("a prompt", prompt, str)
    if prompt is None:
        return canvas
    if infill is not None and MASK not in prompt:
        raise UsageError(
            f"an infill text has a [MASK] for each token to fill in; got {reprlib.repr(prompt)}: add one, "
            "or use prefix (--prefix)"
        )
    if infill is None and MASK in prompt:
        raise UsageError(f"a prefix has no [MASK]; got {reprlib.repr(prompt)}: use infill (--infill)")
    ids = encoded(bundle, prompt)
    assert bundle.tokenizer is not None
    if len(ids) > length:
        raise UsageError(f"a prompt has at most {length} tokens here; this one has {len(ids)}: shorten it")
    prompt_tokens = torch.tensor([ids], dtype=torch.long)
    is_free = torch.ones(1, length, dtype=torch.bool)
    is_free[:, : len(ids)] = prompt_tokens == bundle.tokenizer.token_to_id(MASK)
    canvas.tokens[:, : len(ids)] = prompt_tokens
    return Canvas.given(canvas.tokens, is_free)


def encoded(bundle: Bundle, text: str) -> list[int]:
    """Tokens of a prompt, see ``prompt_ids``.

    Raises:
        UsageError: the bundle has no tokenizer, or a word of the text is not in its vocabulary.
    """
    if bundle.tokenizer is None:
        raise UsageError(f"a prompt needs a tokenizer; bundle {bundle.name} has none: leave the prompt out")
    try:
        return prompt_ids(bundle.tokenizer, text)
    except UsageError:
        raise
    except Exception as error:  # tokenizers has no narrower class; a word is not in a word-level vocabulary
        examples = ", ".join(sorted(bundle.tokenizer.get_vocab())[:3])
        raise UsageError(f"a prompt is made of this tokenizer's words ({examples}, ...); got {text!r}") from error


def prompt_ids(tokenizer: Tokenizer, text: str) -> list[int]:
    """Tokens of a text in which [MASK] is one token.

    The text between the masks is encoded separately. A tokenizer whose [MASK] strips the whitespace before it
    (``lstrip``) would also strip newlines; here only one space before a mask is removed.

    Raises:
        UsageError: the text has a [MASK] and the tokenizer has none.
    """
    *parts, last = text.split(MASK)
    if not parts:
        return list(tokenizer.encode(text, add_special_tokens=False).ids)
    mask_id = tokenizer.token_to_id(MASK)
    if mask_id is None:
        raise UsageError(f"an infill text needs a tokenizer with {MASK}; this one has none: give a prefix instead")
    mask = tokenizer.get_added_tokens_decoder().get(mask_id)
    strips_space = mask is not None and mask.lstrip
    ids: list[int] = []
    for part in parts:
        text = part.removesuffix(" ") if strips_space else part
        ids += [*tokenizer.encode(text, add_special_tokens=False).ids, mask_id]
    return [*ids, *tokenizer.encode(last, add_special_tokens=False).ids]


def decode(bundle: Bundle, tokens: Int[Tensor, "n l"], lengths: Int[Tensor, " n"] | None = None) -> list[str]:
    """Texts of token sequences; token ids separated by spaces for a bundle without a tokenizer.

    Args:
        bundle: bundle with the tokenizer.
        tokens: token ids.
        lengths: number of positions of each sequence before its padding; None without padding.
    """
    rows = tokens.tolist()
    if lengths is not None:
        rows = [row[:length] for row, length in zip(rows, lengths.tolist(), strict=True)]
    if bundle.tokenizer is None:
        return [" ".join(map(str, row)) for row in rows]
    return bundle.tokenizer.decode_batch(rows, skip_special_tokens=False)
