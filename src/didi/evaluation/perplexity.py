"""Generative perplexity: how surprised a language model that never saw the samples is by them.

Every sample is scored, whatever its length; the corpus figure is exp(total NLL / total tokens); a text cut to the
judge's context is counted. Alone it says little: under SmolLM2-135M "the " repeated 300 times is 28.5, news 33.8.
"""

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from didi.data.markov import MARKOV, MarkovChain
from didi.errors import DidiError, UsageError, from_checkout
from didi.hub import failure, hub_or_cache

if TYPE_CHECKING:
    import transformers

HEAD_ROWS = 128  # positions whose logits exist at the same time: 25 MB at a vocabulary of 49,152
MAX_BATCH_TOKENS = 2048


@dataclass(frozen=True)
class Scores:
    """What a judge says about a set of samples.

    Attributes:
        nll: negative log-likelihood of each sample in nats, summed over its judge tokens, float64.
        num_tokens: judge tokens scored in each sample; 0 for an empty text.
        num_truncated: samples of which only the judge's context could be scored.
    """

    nll: Float[Tensor, " b"]
    num_tokens: Int[Tensor, " b"]
    num_truncated: int = 0


@runtime_checkable
class Judge(Protocol):
    """A likelihood that was not trained with the samples; reads texts, tokens, or both."""

    name: str

    def score(self, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
        """Scores of ``b`` samples, given both as text and as the generator's own tokens."""
        ...


class ExactJudge:
    """The likelihood of a Markov chain: a judge without error, on symbols rather than words.

    Args:
        chain: gives the likelihood.
        name: of the chain's world, a name in ``markov.WORLDS``.
    """

    def __init__(self, chain: MarkovChain, *, name: str = MARKOV) -> None:
        self.chain, self.name = chain, name

    def score(self, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
        """Exact scores of ``tokens``; ``texts`` are not read.

        Raises:
            UsageError: a token is not one of the chain's symbols.
        """
        del texts
        tokens = tokens.cpu()
        if tokens.numel() and not 0 <= int(tokens.min()) <= int(tokens.max()) < self.chain.num_symbols:
            raise UsageError(
                f"judge {self.name} reads the {self.chain.num_symbols} symbols of the {self.name} world; got token "
                f"{int(tokens.max())}: choose a language model as judge"
            )
        num_tokens = torch.full((len(tokens),), tokens.shape[1], dtype=torch.long)
        return Scores(-self.chain.log_likelihood(tokens), num_tokens)


class CausalJudge:
    """A causal language model of transformers, reading texts through its own tokenizer.

    Every text follows the tokenizer's BOS, or its EOS where it has no BOS (as GPT-2 evaluations do), so that its first
    token is scored too. Arithmetic is float32, sums are float64.

    Args:
        model: any ``AutoModelForCausalLM``; cast to float32 and put in eval mode.
        tokenizer: its tokenizer, fast or slow.
        name: what a report calls this judge.
        max_batch_tokens: padded tokens that go through the network at once.

    Raises:
        UsageError: the tokenizer has neither BOS nor EOS.
    """

    def __init__(
        self,
        model: "transformers.PreTrainedModel",
        tokenizer: "transformers.PreTrainedTokenizerBase",
        *,
        name: str,
        max_batch_tokens: int = MAX_BATCH_TOKENS,
    ) -> None:
        start_id = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
        if start_id is None:
            raise UsageError(f"judge {name!r} has neither a BOS nor an EOS token to start a text with; choose another")
        self.name = name
        self.max_batch_tokens = max_batch_tokens
        self._start_id = int(start_id)
        self._tokenizer = tokenizer
        self._context: int | None = getattr(model.config, "max_position_embeddings", None)
        self._trunk, self._head = _split_head(model.float().eval(), self._start_id)

    def score(self, texts: Sequence[str], tokens: Int[Tensor, "b l"]) -> Scores:
        """Scores of ``texts``, in their order; ``tokens`` are not read. Batching changes nothing but rounding."""
        del tokens
        options = {"add_special_tokens": False, "verbose": False}
        encoded: list[list[int]] = self._tokenizer(list(texts), **options)["input_ids"] if texts else []
        rows = [row[: self._context] for row in encoded]
        num_tokens = torch.tensor([len(row) for row in rows], dtype=torch.long)
        nll = torch.zeros(len(rows), dtype=torch.float64)
        for batch in _length_batches(num_tokens.tolist(), self.max_batch_tokens):
            nll[batch] = self._batch_nll([rows[i] for i in batch])
        return Scores(nll, num_tokens, sum(len(row) < len(full) for row, full in zip(rows, encoded, strict=True)))

    @torch.inference_mode()
    def _batch_nll(self, rows: list[list[int]]) -> Float[Tensor, " n"]:
        """NLL of each row; padding goes to the right, where causal attention never looks, so no mask is needed."""
        device = next(self._trunk.parameters()).device
        targets = nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=-1)
        is_real = (targets >= 0).to(device)
        targets = targets.to(device)
        inputs = F.pad(targets.clamp(min=0), (1, 0), value=self._start_id)[:, :-1]
        features = self._trunk(input_ids=inputs, use_cache=False)[0][is_real]
        chunks = zip(features.split(HEAD_ROWS), targets[is_real].split(HEAD_ROWS), strict=True)
        token_nll = [F.cross_entropy(self._head(x).float(), y, reduction="none") for x, y in chunks]
        nll = torch.zeros(is_real.shape, dtype=torch.float64)
        nll[is_real.cpu()] = torch.cat(token_nll).cpu().double()
        return nll.sum(1)


def _split_head(model: "transformers.PreTrainedModel", start_id: int) -> tuple[nn.Module, nn.Module]:
    """Trunk and vocabulary head, so that logits exist only for a few real positions at a time.

    A model that does more to its logits than a head does (soft caps, scales) is left whole, with an identity as head;
    its logits then exist for a batch at a time.
    """
    trunk, head = model.base_model, model.get_output_embeddings()
    if head is None or trunk is model:
        return model, nn.Identity()
    with torch.inference_mode():
        probe = torch.tensor([[start_id, 0, 1, 2]], device=next(model.parameters()).device)
        whole = model(input_ids=probe, use_cache=False).logits
        parts = head(trunk(input_ids=probe, use_cache=False)[0])
    is_plain = parts.shape == whole.shape and torch.allclose(parts, whole, rtol=1e-4, atol=1e-4)
    return (trunk, head) if is_plain else (model, nn.Identity())


def _length_batches(lengths: list[int], max_tokens: int) -> Iterator[list[int]]:
    """Indices of the non-empty rows, longest first, in batches of at most ``max_tokens`` padded tokens (or one row)."""
    order = sorted((i for i, length in enumerate(lengths) if length), key=lambda i: -lengths[i])
    while order:
        size = max(1, max_tokens // lengths[order[0]])
        yield order[:size]
        order = order[size:]


def perplexity(scores: Scores) -> float:
    """Corpus perplexity exp(total NLL / total tokens); NaN where nothing was scored."""
    return float((scores.nll.sum() / scores.num_tokens.sum()).exp())


def mean_sample_perplexity(scores: Scores) -> float:
    """Mean over non-empty samples of exp(NLL / tokens), the figure that some papers report; NaN where none is."""
    is_scored = scores.num_tokens > 0
    return float((scores.nll[is_scored] / scores.num_tokens[is_scored]).exp().mean()) if is_scored.any() else math.nan


@contextlib.contextmanager
def transformers_for(kind: str, name: str, *, known: Sequence[str]) -> Iterator[ModuleType]:
    """The library transformers without log lines and progress bars, its many-line errors turned into one of ours.

    Inside the block the Hub is asked only where ``name`` is neither one of ours nor a folder, and not at all if it is
    not reachable.

    Args:
        kind: what is loaded with it: ``judge``.
        name: of the model: one of ours, a folder, or a Hub name.
        known: names of ours.

    Raises:
        UsageError: no model has that name, or it cannot be looked up and is no ``owner/name``.
        DidiError: transformers is not installed, or the model cannot be read or reached.
    """
    purpose, is_reached = f"{kind} {name!r}", True
    try:
        import transformers

        log = transformers.utils.logging
        verbosity, has_bars = log.get_verbosity(), log.is_progress_bar_enabled()
        log.set_verbosity_error()
        log.disable_progress_bar()
        is_local = name in known or Path(name).is_dir()
        try:
            with contextlib.nullcontext(True) if is_local else hub_or_cache() as is_reached:
                yield transformers
        finally:
            log.set_verbosity(verbosity)
            if has_bars:
                log.enable_progress_bar()
    except DidiError:
        raise
    except ImportError as error:
        raise DidiError(f"{purpose} needs transformers: {from_checkout('eval')} ({error})") from error
    except Exception as error:  # a loader of other people's files can raise anything
        cause, reason = type(error.__cause__).__name__, failure(error, is_reached=is_reached)
        is_unknown = cause in ("HFValidationError", "RepositoryNotFoundError")
        if is_unknown or (cause == "LocalEntryNotFoundError" and "/" not in name):
            choices = f"{', '.join(map(repr, known))}, a folder of a model of transformers, or its Hub name"
            raise UsageError(f"no {purpose}: known are {choices} ({reason})") from error
        raise DidiError(f"{purpose} could not be loaded: {reason}") from error
