"""A copy of a trained network that is kept for some updates: a reference, or the teacher of the next round."""

import torch
from torch import Tensor

from didi.errors import UsageError
from didi.models.adapters import copy_sharing_frozen
from didi.models.networks import DenoiserNetwork


class FrozenCopy:
    """Weights of an earlier step; those that are frozen in the source are shared with it.

    Args:
        source: what is copied.
        setting: name of the setting that asks for the copy, for messages.

    Attributes:
        network: the copy, in eval mode.
    """

    def __init__(self, source: DenoiserNetwork, setting: str) -> None:
        self.network = copy_sharing_frozen(source).eval()
        self._setting = setting

    @torch.no_grad()
    def renew(self, source: DenoiserNetwork) -> None:
        """Take the weights of ``source`` as they are now."""
        for kept, current in zip(self.network.parameters(), source.parameters(), strict=True):
            if kept is not current:
                kept.copy_(current)

    def state_dict(self) -> dict[str, Tensor]:
        """The weights that are trained in the source."""
        return {name: one.detach() for name, one in self.network.named_parameters() if one.requires_grad}

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """See ``state_dict``.

        Raises:
            UsageError: it lacks weights.
        """
        for name, one in self.state_dict().items():
            if name not in state:
                raise UsageError(
                    f"a checkpoint with {self._setting} holds a copy of the student; this one lacks its {name}: begin "
                    "again in another folder with --out"
                )
            one.copy_(state[name])
