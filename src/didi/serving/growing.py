"""The text of a completion whose tokens are drawn in no order, as the part before the first that is missing."""

from collections.abc import Sequence
from typing import Literal

import torch

from didi.sampling.prompt import decode
from didi.sampling.registry import find_sampler
from didi.serving.requests import Asked

END_OF_TEXT = ("<|endoftext|>", "</s>", "[EOS]")
CUT_CHARACTER = "\ufffd"
"""What tokenizers write for bytes that are not yet a character."""


class Growing:
    """A completion, cut before the end of the text and before stop texts.

    Args:
        asked: the prompt.
        stops: texts before which the completion ends.
        echoes: whether it begins with the prompt.

    Attributes:
        head: the prompt, where it is echoed.
    """

    def __init__(self, asked: Asked, stops: Sequence[str], *, echoes: bool) -> None:
        canvas, self._bundle, self._stops = asked.plan.canvas, asked.model.bundle, stops
        self._begin, num = asked.num_given, int(canvas.is_free[0].sum())
        self._given = asked.without_frame(canvas.tokens)[0, : self._begin].tolist()
        # What the prompt ends with may be a part of a character, which the completion ends.
        self._prompt = decode(self._bundle, torch.tensor([self._given], dtype=torch.long))[0].rstrip(CUT_CHARACTER)
        self.head = self._prompt if echoes else ""
        self._end = self._begin + num
        self._ids: list[int | None] = [None] * num
        self._num_known, self._sent, self._is_cut = 0, "", False
        process = self._bundle.process
        self._is_final = process.mask_id is not None and not find_sampler(asked.sampler, process.name).is_revising
        tokenizer = self._bundle.tokenizer
        ends = [] if tokenizer is None else map(tokenizer.token_to_id, END_OF_TEXT)
        self._end_ids = {one for one in ends if one is not None}

    @property
    def finish_reason(self) -> Literal["length", "stop"]:
        """Whether the text was cut; known at its end."""
        return "stop" if self._is_cut else "length"

    def finished(self, row: Sequence[int]) -> str:
        """The whole text, of a finished sequence."""
        return self.head + self._cut(list(row[self._begin : self._end]))

    def added(self, positions: Sequence[int], token_ids: Sequence[int]) -> str:
        """What a move adds to the text; nothing where a later move may still change it."""
        if not self._is_final or self._is_cut:
            return ""
        for position, one in zip(positions, token_ids, strict=True):
            if self._begin <= position < self._end:
                self._ids[position - self._begin] = one
        before = self._num_known
        while self._num_known < len(self._ids) and self._ids[self._num_known] is not None:
            self._num_known += 1
        if self._num_known == before:
            return ""
        text = self._cut([one for one in self._ids[: self._num_known] if one is not None])
        if not self._is_cut:  # its end may be the beginning of a stop text, or of a character
            held = max((len(stop) - 1 for stop in self._stops), default=0)
            text = text[: max(0, len(text) - held)].rstrip(CUT_CHARACTER)
        return self._new(text)

    def rest(self, row: Sequence[int]) -> str:
        """What the end adds to the text."""
        return self._new(self._cut(list(row[self._begin : self._end])))

    def _new(self, text: str) -> str:
        """The part of ``text`` that was not sent yet."""
        new = text[len(self._sent) :]
        self._sent += new
        return new

    def _cut(self, ids: list[int]) -> str:
        """The text of ``ids`` up to the end of the text or a stop text."""
        end = next((at for at, one in enumerate(ids) if one in self._end_ids), len(ids))
        text = self._decoded(ids[:end])
        stop = min((at for at in map(text.find, self._stops) if at >= 0), default=len(text))
        self._is_cut = end < len(ids) or stop < len(text)
        return text[:stop]

    def _decoded(self, ids: list[int]) -> str:
        """What ``ids`` add to the text of the prompt: with the space that joins words, where the tokens have none."""
        return decode(self._bundle, torch.tensor([self._given + ids], dtype=torch.long))[0][len(self._prompt) :]
