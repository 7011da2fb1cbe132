import torch

from didi.diffusion.noise import named_generator
from didi.methods.replay import Replay

CPU = torch.device("cpu")


def batches(num):
    return [torch.full((3, 2), number) for number in range(num)]


def test_the_samples_of_the_last_steps_are_drawn_alike(chi_square):
    replay = Replay(2)
    for batch in batches(4):
        replay.add(batch)
    drawn = replay.draw(1000, named_generator("replay"))
    assert drawn.shape == (1000, 2)
    assert chi_square(drawn[:, 0] - 2, torch.tensor([1, 1])) > 1e-3


def test_none_are_kept_for_no_steps():
    replay = Replay(0)
    replay.add(batches(1)[0])
    assert replay.state_dict() == []


def test_a_state_brings_the_samples_back():
    replay, resumed = Replay(3), Replay(3)
    for batch in batches(5):
        replay.add(batch)
    resumed.load_state_dict(replay.state_dict(), CPU)
    generators = [named_generator("replay") for _ in range(2)]
    assert torch.equal(replay.draw(20, generators[0]), resumed.draw(20, generators[1]))
    replay.add(batches(6)[5])
    assert [int(batch[0, 0]) for batch in replay.state_dict()] == [3, 4, 5]
