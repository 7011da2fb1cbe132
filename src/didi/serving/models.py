"""The models of a server: names, networks, tokens as texts, and whether their weights can be used."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, get_args

import torch

from didi.errors import UsageError, suggestion
from didi.models.autoregressive import AutoregressiveLM
from didi.models.bundle import Bundle, Role
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import Frame, decode
from didi.sampling.registry import sampler_of, samplers_of
from didi.serving.schemas import ModelCard


class UnknownModel(UsageError):
    """No model that is served has the name."""


@dataclass
class ServedModel:
    """A bundle under a name.

    Attributes:
        name: as requests write it.
        bundle: evaluated, on its device.
        is_damaged: whether a network was found to give no finite numbers.
    """

    name: str
    bundle: Bundle
    is_damaged: bool = False
    created: int = field(default_factory=lambda: int(time.time()))

    @cached_property
    def roles(self) -> dict[str, Any]:
        """The networks that can be sampled, by role."""
        return {role: one for role, one in self.bundle.networks().items() if role in get_args(Role)}

    def role_of(self, role: Role | None) -> str:
        """The role that a request without one has.

        Raises:
            UsageError: the bundle has no such network.
        """
        network = self.bundle.network(role)
        return next(name for name, one in self.roles.items() if one is network)

    @cached_property
    def token_texts(self) -> list[str]:
        """The text of each token by itself."""
        ids = torch.arange(next(iter(self.roles.values())).vocab_size)
        return decode(self.bundle, ids[:, None])

    def cards(self) -> list[ModelCard]:
        """The model by its name, and each of its networks as ``name:role``."""
        return [self._card(self.name, None), *(self._card(f"{self.name}:{role}", role) for role in self.roles)]

    def _card(self, name: str, role: Any) -> ModelCard:
        network, bundle = self.bundle.network(role), self.bundle
        samplers = samplers_of(bundle.process.name)
        if bundle.discriminator is None:
            samplers.remove("guided")
        if isinstance(network, AutoregressiveLM):
            samplers = ["ancestral"]
        default = sampler_of(bundle, SamplingOptions(role=role))
        return ModelCard(
            id=name,
            created=self.created,
            role=self.role_of(role),
            roles=list(self.roles),
            process=bundle.process.name,
            length=network.length - Frame.of(network).num_ids,
            nfe=bundle.default_nfe(role),
            samplers=sorted(samplers, key=lambda one: one != default),
            takes_text=bundle.tokenizer is not None,
        )

    @torch.inference_mode()
    def check_weights(self) -> bool:
        """Whether all weights are finite, and the logits of a sequence of one symbol too; remembered if not.

        A sampler can draw nothing from such a network, whatever a request asks for.
        """
        networks = self.bundle.networks()
        are_finite = all(bool(one.isfinite().all()) for network in networks.values() for one in network.parameters())
        if are_finite:
            are_finite = all(map(self._has_finite_logits, self.roles.values()))
        self.is_damaged = not are_finite
        return are_finite

    def _has_finite_logits(self, network: Any) -> bool:
        device = next(network.parameters()).device
        inputs = torch.full((1, network.length), network.mask_id or 0, device=device)
        if isinstance(network, AutoregressiveLM):
            logits = network.head(network.features(inputs)[:, -1])
        else:
            level = self.bundle.process.noise_level(network, torch.ones(1, dtype=torch.float64, device=device))
            logits = network.head(network.features(inputs, level)[:, -1])
        return bool(logits.amax(-1).isfinite().all())


class Models:
    """The models that are served, by name; ``name:role`` is a network of one.

    Args:
        bundles: by the names of the models; one or more.
    """

    def __init__(self, bundles: Mapping[str, Bundle]) -> None:
        self._models = {name: ServedModel(name, bundle) for name, bundle in bundles.items()}

    def __iter__(self) -> Iterator[ServedModel]:
        return iter(self._models.values())

    def find(self, name: str | None, role: Role | None = None) -> tuple[ServedModel, Role | None]:
        """The model of a request, and its role.

        Raises:
            UnknownModel: there is none of that name.
            UsageError: the name and the request have different roles.
        """
        if name is None:
            return next(iter(self._models.values())), role
        if name in self._models:
            return self._models[name], role
        base, _, named = name.rpartition(":")
        if base in self._models and named in self._models[base].roles:
            if role not in (None, named):
                raise UsageError(f"model {name!r} has the role {named}; got {role}: leave role out")
            return self._models[base], named  # type: ignore[return-value]
        known = [card.id for model in self._models.values() for card in model.cards()]
        raise UnknownModel(f"a model is one of {', '.join(known)}; got {name!r}{suggestion(name, known)}")
