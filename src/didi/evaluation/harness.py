"""A bundle as a model of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    import lm_eval
    from didi.evaluation.harness import HarnessModel
    lm_eval.simple_evaluate(model=HarnessModel("tiny-news", role="teacher"), tasks=["lambada_openai"])

Log-likelihoods of an autoregressive network are exact. For a masked-diffusion network they are the ELBO given the
context, a lower bound estimated from ``num_draws`` random masks, as in LLaDA (https://arxiv.org/abs/2502.09992,
App. B.5).
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from didi.data.encoding import plain_encoder
from didi.errors import UsageError
from didi.evaluation.conditional import Continuation, are_greedy, log_likelihoods, padded_canvas, padded_length
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role, load
from didi.sampling.completion import completed
from didi.sampling.options import SamplingOptions

if TYPE_CHECKING:
    LM: type = object
else:
    try:
        from lm_eval.api.model import LM
    except ImportError:  # only the harness itself needs its base class
        LM = object


class HarnessModel(LM):
    """The three request types of lm-evaluation-harness for a network of a bundle.

    Args:
        bundle: a bundle, or a name for ``didi.load``.
        role: role of the network; by default the student if there is one.
        num_draws: number of random masks for each log-likelihood of a masked-diffusion network.
        nfe: number of moves of a generation; the default is that of ``generate``.
        options: sampling options of a generation; ``role`` replaces theirs.
        seed: random seed of masks and generations.

    Raises:
        UsageError: the bundle has no such network, or no tokenizer.
    """

    def __init__(
        self,
        bundle: Bundle | str,
        role: Role | None = None,
        *,
        num_draws: int = 32,
        nfe: int | None = None,
        options: SamplingOptions | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.bundle = load(bundle) if isinstance(bundle, str) else bundle
        if self.bundle.tokenizer is None:
            raise UsageError(f"requests of the harness are text; bundle {self.bundle.name} has no tokenizer")
        self.tokenizer = self.bundle.tokenizer
        self.network = self.bundle.network(role)
        self._encoder = plain_encoder(self.bundle.tokenizer)
        self.options = replace(options or SamplingOptions(), role=role)
        self.num_draws, self.nfe, self.seed = num_draws, nfe, seed

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation given its context, and whether greedy decoding produces it.

        A context that does not fit is cut on the left. A continuation longer than the network's context is scored in
        blocks; only the first block is conditioned on the context.
        """
        del disable_tqdm
        blocks = []
        for number, request in enumerate(requests):
            context, continuation = request.args
            blocks.append(self._blocks(context, continuation, number))
        totals = self._summed(blocks)
        flat = list(itertools.chain.from_iterable(blocks))
        greedy = iter(are_greedy(self.network, self.bundle.process, flat).tolist())
        # The list comes first: all() alone would stop early and leave flags of this request in the iterator.
        is_greedy = [all(list(itertools.islice(greedy, len(of_request)))) for of_request in blocks]
        return list(zip(totals, is_greedy, strict=True))

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each text, summed over blocks of the network's context; 0.0 for an empty text."""
        del disable_tqdm
        blocks = []
        for number, request in enumerate(requests):
            ids = self._encode(request.args[0])
            begins = range(0, len(ids), self.network.length)
            blocks.append(
                [
                    Continuation(ids[begin : begin + self.network.length], 0, ("harness", number, block))
                    for block, begin in enumerate(begins)
                ]
            )
        return self._summed(blocks)

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each context, cut at the first of its stop strings; empty stop strings are ignored."""
        del disable_tqdm
        length, prompts = self.network.length, []
        for request in requests:
            context, settings = request.args
            num_new = max(0, min(int(settings.get("max_gen_toks", length // 2)), length - 1))
            ids = self._encode(context)[-(length - num_new) :]
            prompts.append(Continuation([*ids, *[0] * num_new], len(ids)))
        texts = []
        for drawn, prompt, request in zip(self._generated(prompts), prompts, requests, strict=True):
            text = self.tokenizer.decode(drawn[prompt.num_given :], skip_special_tokens=False)
            until = request.args[1].get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                text = text.partition(stop)[0] if stop else text
            texts.append(text)
        return texts

    def _generated(self, prompts: Sequence[Continuation]) -> list[list[int]]:
        """Tokens of each prompt and its continuation; prompts of similar lengths are sampled in one batch."""
        is_autoregressive = isinstance(self.network, AutoregressiveLM)
        groups: dict[tuple[int, int], list[int]] = {}
        for number, prompt in enumerate(prompts):
            width = len(prompt.ids) if is_autoregressive else padded_length(len(prompt.ids), self.network.length)
            # Autoregressive sampling needs equal prompt lengths and equal lengths within a batch.
            groups.setdefault((width, prompt.num_given if is_autoregressive else 0), []).append(number)
        completions: dict[int, list[int]] = {}
        for (width, _), members in groups.items():
            for begin in range(0, len(members), self.options.batch_size):
                index = members[begin : begin + self.options.batch_size]
                canvas = padded_canvas([prompts[number] for number in index], width)
                tokens = completed(
                    self.bundle, canvas, indices=index, seed=self.seed, nfe=self.nfe, options=self.options
                )
                completions |= {
                    number: row[: len(prompts[number].ids)] for number, row in zip(index, tokens.tolist(), strict=True)
                }
        return [completions[number] for number in range(len(prompts))]

    def _encode(self, text: str) -> list[int]:
        """Token ids of a text; a literal ``[MASK]`` or ``<|endoftext|>`` is encoded as ordinary text."""
        try:
            ids: list[int] = self._encoder.encode(text, add_special_tokens=False).ids
        except Exception as error:  # tokenizers raises no narrower type where a word-level vocabulary lacks a word
            known = ", ".join(sorted(self.tokenizer.get_vocab())[:3])
            raise UsageError(
                f"a request is made of the tokenizer's words ({known}, ...); got {text!r:.80}; choose a model of text"
            ) from error
        return ids

    def _blocks(self, context: str, continuation: str, number: int) -> list[Continuation]:
        """A request as sequences of at most the network's context, each with the number of context tokens."""
        spaces = len(context) - len(context.rstrip())
        if spaces:  # a byte-level tokenizer encodes a space together with the word that follows
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        prefix = self._encode(context)
        whole = self._encode(context + continuation)
        if whole[: len(prefix)] != prefix:  # a token crosses the boundary between context and continuation
            whole = prefix + self._encode(continuation)
        length, num_new = self.network.length, len(whole) - len(prefix)
        ends = range(len(whole) - (num_new - 1) // length * length, len(whole) + 1, length) if num_new else ()
        return [
            Continuation(
                whole[max(0, end - length) : end],
                max(0, len(prefix) - max(0, end - length)),
                ("harness", number, block),
            )
            for block, end in enumerate(ends)
        ]

    def _summed(self, blocks: Sequence[Sequence[Continuation]]) -> list[float]:
        """Log-likelihood of each request, summed over its blocks."""
        flat = list(itertools.chain.from_iterable(blocks))
        nats = iter(
            log_likelihoods(self.network, self.bundle.process, flat, num_draws=self.num_draws, seed=self.seed).tolist()
        )
        return [math.fsum(itertools.islice(nats, len(of_request))) for of_request in blocks]
