"""Make ``lightning-omegaconf-VERSION.ckpt``: checkpoints in the form of Lightning with OmegaConf's own objects in them.

The tests read these files where OmegaConf is not installed. With the version to store in a folder of its own:

    pip install --target DIR "omegaconf==2.3.*"
    PYTHONPATH=src:DIR python tests/models/data/make_lightning_checkpoints.py
"""

import enum
import pathlib
from collections import OrderedDict
from dataclasses import dataclass, field

import omegaconf
import torch
from torch import nn

from didi.models.dit import DiT, DiTConfig

HERE = pathlib.Path(__file__).parent


class Noise(enum.Enum):
    LOGLINEAR = "loglinear"


@dataclass
class Optim:
    """A structured configuration, whose class is pickled by name."""

    lr: float = 3e-4
    betas: list[float] = field(default_factory=lambda: [0.9, 0.999])
    noise: Noise = Noise.LOGLINEAR
    weights: dict[str, int] = field(default_factory=lambda: {"a": 1})


def settings():
    omegaconf.OmegaConf.register_new_resolver("div_up", lambda x, y: -(-x // y), use_cache=True)
    config = omegaconf.OmegaConf.create(
        {
            "model": {"length": 6, "n_heads": 1, "name": "tiny", "dropout": 0.1, "tie": False, "nothing": None},
            "data": {"cache_dir": pathlib.Path("data"), "raw": b"\x00\xff", "batch": "${div_up:${model.length},4}"},
            "trainer": {"devices": [0, 1], "missing": "???"},
            "optim": omegaconf.OmegaConf.structured(Optim),
        }
    )
    omegaconf.OmegaConf.set_struct(config, True)
    assert config.data.batch == 2  # fills the cache of resolvers, a defaultdict with items
    return config


def checkpoint():
    torch.manual_seed(0)
    network = DiT(DiTConfig(vocab_size=5, mask_id=4, length=6, hidden_size=4, num_blocks=1, num_heads=1, cond_dim=2))
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    config = settings()
    return {
        "epoch": 0,
        "global_step": 10,
        "pytorch-lightning_version": "2.2.1",
        "omegaconf_version": omegaconf.__version__,
        "state_dict": OrderedDict((f"backbone.{name}", value) for name, value in network.state_dict().items()),
        "hparams_name": "kwargs",
        "hyper_parameters": {"config": config, "devices": config.trainer.devices},
    }


if __name__ == "__main__":
    major, minor, *_ = omegaconf.__version__.split(".")
    torch.save(checkpoint(), HERE / f"lightning-omegaconf-{major}.{minor}.ckpt")
