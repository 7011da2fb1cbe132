"""The text of a completion whose tokens are drawn in any order: what can be sent of it after each move."""

from collections.abc import Sequence
from typing import Literal

import torch

from didi.sampling.prompt import decode
from didi.sampling.registry import find_sampler
from didi.serving.requests import JobSpec

END_OF_TEXT = ("<|endoftext|>", "</s>", "[EOS]")
REPLACEMENT_CHARACTER = "\ufffd"
"""Text of a token that ends within the bytes of a character."""


class CompletionText:
    """The text of one completion; it ends before the first end-of-text token and before the first stop text.

    Args:
        spec: the prompt.
        stops: stop texts.
        echoes: whether the text begins with the prompt.

    Attributes:
        head: the text of the prompt if ``echoes``, otherwise empty.
    """

    def __init__(self, spec: JobSpec, stops: Sequence[str], *, echoes: bool) -> None:
        canvas, self._bundle, self._stops = spec.plan.canvas, spec.model.bundle, stops
        self._begin, length = spec.num_prompt, int(canvas.is_free[0].sum())
        self._prompt_ids = spec.without_frame(canvas.tokens)[0, : self._begin].tolist()
        # If the prompt ends within the bytes of a character, the whole character belongs to the completion.
        prompt = decode(self._bundle, torch.tensor([self._prompt_ids], dtype=torch.long))[0]
        self._prompt = prompt.rstrip(REPLACEMENT_CHARACTER)
        self.head = self._prompt if echoes else ""
        self._end = self._begin + length
        self._ids: list[int | None] = [None] * length  # None at positions that are not drawn yet
        self._num_known, self._sent, self._is_cut = 0, "", False
        process = self._bundle.process
        self._is_final = process.mask_id is not None and not find_sampler(spec.sampler, process.name).is_revising
        tokenizer = self._bundle.tokenizer
        end_ids = [] if tokenizer is None else map(tokenizer.token_to_id, END_OF_TEXT)
        self._end_ids = {token for token in end_ids if token is not None}

    @property
    def finish_reason(self) -> Literal["length", "stop"]:
        """``stop`` if an end-of-text token or a stop text ended the text; valid once the text is finished."""
        return "stop" if self._is_cut else "length"

    def finished(self, row: Sequence[int]) -> str:
        """The whole text, with ``head``.

        Args:
            row: token ids of the finished sequence, prompt included.
        """
        return self.head + self._cut(list(row[self._begin : self._end]))

    def added(self, positions: Sequence[int], token_ids: Sequence[int]) -> str:
        """The text to send after a move; empty for samplers and processes that may change a token again.

        Args:
            positions: positions of the sequence that the move changed.
            token_ids: their tokens.
        """
        if not self._is_final or self._is_cut:
            return ""
        for position, token in zip(positions, token_ids, strict=True):
            if self._begin <= position < self._end:
                self._ids[position - self._begin] = token
        before = self._num_known
        while self._num_known < len(self._ids) and self._ids[self._num_known] is not None:
            self._num_known += 1
        if self._num_known == before:
            return ""
        text = self._cut([token for token in self._ids[: self._num_known] if token is not None])
        if not self._is_cut:  # the last characters may belong to a stop text or to an incomplete character
            num_held = max((len(stop) - 1 for stop in self._stops), default=0)
            text = text[: max(0, len(text) - num_held)].rstrip(REPLACEMENT_CHARACTER)
        return self._unsent(text)

    def rest(self, row: Sequence[int]) -> str:
        """The text to send at the end.

        Args:
            row: token ids of the finished sequence, prompt included.
        """
        return self._unsent(self._cut(list(row[self._begin : self._end])))

    def _unsent(self, text: str) -> str:
        """The part of ``text`` that has not been sent; it counts as sent from now on."""
        new = text[len(self._sent) :]
        self._sent += new
        return new

    def _cut(self, ids: list[int]) -> str:
        """The text of ``ids`` before the first end-of-text token and the first stop text."""
        end = next((at for at, token in enumerate(ids) if token in self._end_ids), len(ids))
        text = self._decoded(ids[:end])
        stop = min((at for at in map(text.find, self._stops) if at >= 0), default=len(text))
        self._is_cut = end < len(ids) or stop < len(text)
        return text[:stop]

    def _decoded(self, ids: list[int]) -> str:
        """The text that ``ids`` append to the prompt.

        Both are decoded together, since some tokenizers write the space between words only when they join tokens.
        """
        return decode(self._bundle, torch.tensor([self._prompt_ids + ids], dtype=torch.long))[0][len(self._prompt) :]
