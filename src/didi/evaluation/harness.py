"""A bundle as a model of lm-evaluation-harness (https://github.com/EleutherAI/lm-evaluation-harness).

    import lm_eval
    from didi.evaluation.harness import HarnessModel
    lm_eval.simple_evaluate(model=HarnessModel("tiny-news", role="teacher"), tasks=["lambada_openai"])

Log-likelihoods of an autoregressive network are exact; those of a masked-diffusion one are its NELBO with the context
given, a lower bound from ``num_draws`` masks, as LLaDA's (https://arxiv.org/abs/2502.09992, App. B.5).
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Int
from torch import Tensor

from didi.diffusion.absorbing import Absorbing
from didi.diffusion.canvas import Canvas
from didi.diffusion.noise import named_generator
from didi.diffusion.schedule import time_at
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role, load
from didi.models.nelbo import nelbo_draws
from didi.sampling.generate import generate
from didi.sampling.options import SamplingOptions

if TYPE_CHECKING:
    LM: type = object
else:
    try:
        from lm_eval.api.model import LM
    except ImportError:  # the class works without; only the harness itself asks for the base class
        LM = object


class HarnessModel(LM):
    """The three requests that lm-evaluation-harness makes of a model.

    Args:
        bundle: a bundle, or a name for ``didi.load``.
        role: which network; the student where there is one, by default.
        num_draws: masks for each log-likelihood of a masked-diffusion network.
        nfe: moves of a generation.
        options: of a generation, beside the role.
        seed: of masks and generations.

    Raises:
        UsageError: the bundle has no such network, or no tokenizer.
    """

    def __init__(
        self,
        bundle: Bundle | str,
        role: Role | None = None,
        *,
        num_draws: int = 32,
        nfe: int = 32,
        options: SamplingOptions | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.bundle = load(bundle) if isinstance(bundle, str) else bundle
        if self.bundle.tokenizer is None:
            raise UsageError(f"the harness asks in text; bundle {self.bundle.name} has no tokenizer")
        self.tokenizer = self.bundle.tokenizer
        self.network = self.bundle.network(role)
        self.options = options or SamplingOptions(role=role)
        self.num_draws, self.nfe, self.seed = num_draws, nfe, seed

    def loglikelihood(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Log-likelihood in nats of each continuation given its context, and whether greedy decoding would write it."""
        del disable_tqdm
        return [self._scored(*self._tokens(*request.args), number) for number, request in enumerate(requests)]

    def loglikelihood_rolling(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[float]:
        """Log-likelihood in nats of each text, in blocks of the network's context."""
        del disable_tqdm
        found = []
        for number, request in enumerate(requests):
            tokens = torch.tensor([self._encode(request.args[0])])
            blocks = [block for block in tokens.split(self.network.length, dim=1) if block.numel()]
            found.append(sum(self._log_likelihood(block, 0, number) for block in blocks))
        return found

    def generate_until(self, requests: Sequence[Any], disable_tqdm: bool = False) -> list[str]:
        """A continuation of each context, cut at the first of its stop strings."""
        del disable_tqdm
        texts = []
        for request in requests:
            context, settings = request.args
            num_new = min(int(settings.get("max_gen_toks", self.network.length // 2)), self.network.length - 1)
            ids = self._encode(context)[-(self.network.length - num_new) :]
            canvas = self.tokenizer.decode(ids, skip_special_tokens=False)
            kept = len(self._encode(canvas))  # a cut text may be tokenised otherwise
            length = min(kept + num_new, self.network.length)
            drawn = generate(
                self.bundle,
                num_samples=1,
                nfe=self.nfe,
                seed=self.seed,
                prefix=canvas,
                length=length,
                options=self.options,
            )
            text = self.tokenizer.decode(drawn.tokens[0, kept:].tolist(), skip_special_tokens=False)
            until = settings.get("until") or []
            for stop in [until] if isinstance(until, str) else until:
                text = text.partition(stop)[0]
            texts.append(text)
        return texts

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False).ids

    def _tokens(self, context: str, continuation: str) -> tuple[Int[Tensor, "1 l"], int]:
        """Tokens of both, cut on the left to the network's context, and how many of them are given."""
        spaces = len(context) - len(context.rstrip())
        if spaces:  # a byte-level tokenizer writes a space before the word that follows
            context, continuation = context[:-spaces], context[-spaces:] + continuation
        given = self._encode(context)
        whole = self._encode(context + continuation)
        given_length = len(given) if whole[: len(given)] == given else 0
        if not given_length:  # the border falls within a token
            whole, given_length = given + self._encode(continuation), len(given)
        cut = max(0, len(whole) - self.network.length)
        return torch.tensor([whole[cut:]]), max(0, given_length - cut)

    def _scored(self, tokens: Int[Tensor, "1 l"], given: int, number: int) -> tuple[float, bool]:
        return self._log_likelihood(tokens, given, number), self._is_greedy(tokens, given)

    @torch.no_grad()
    def _log_likelihood(self, tokens: Int[Tensor, "1 l"], given: int, number: int) -> float:
        """Of the tokens after the ``given`` ones; 0 where there are none."""
        if tokens.shape[1] == given:
            return 0.0
        tokens = tokens.to(next(self.network.parameters()).device)
        if isinstance(self.network, AutoregressiveLM):
            return -float(self.network.nll(tokens)[:, given:].double().sum())
        generator = named_generator(self.seed, "harness", number)
        is_free = (torch.arange(tokens.shape[1], device=tokens.device) >= given)[None]
        canvas = Canvas.given(tokens, is_free)
        return -float(nelbo_draws(self.network, self.bundle.process, canvas, self.num_draws, [generator]).mean())

    @torch.no_grad()
    def _is_greedy(self, tokens: Int[Tensor, "1 l"], given: int) -> bool:
        """Whether the likeliest choices write the continuation; a denoiser reveals its surest token first."""
        tokens = tokens.to(next(self.network.parameters()).device)
        if isinstance(self.network, AutoregressiveLM):
            begin = torch.full_like(tokens[:, :1], self.network.mask_id)
            best = self.network(torch.cat([begin, tokens[:, :-1]], dim=1)).argmax(-1)
            return bool((best == tokens)[:, given:].all())
        process = self.bundle.process
        if not isinstance(process, Absorbing):
            raise UsageError(f"greedy decoding reveals masks; the process of bundle {self.bundle.name} has none")
        z = tokens.clone()
        z[:, given:] = process.mask_id
        for _ in range(tokens.shape[1] - given):
            is_masked = process.is_predicted(z)
            t = time_at(process.schedule, 1 - is_masked.double().mean(1))  # at which as many masks are expected
            surest, best = process.log_probs(self.network(z, process.noise_level(self.network, t)))[0].max(-1)
            position = int(surest.masked_fill(~is_masked[0], -torch.inf).argmax())
            if best[position] != tokens[0, position]:
                return False
            z[0, position] = best[position]
        return True
