"""Replays: the recorded moves, the page and the animation, and the colours of the animation."""

import io
import json
import re
import time
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

import didi
from didi.errors import UsageError
from didi.models.autoregressive import AutoregressiveConfig, AutoregressiveLM
from didi.sampling.options import SamplingOptions
from didi.sampling.prompt import decode
from didi.sampling.remasking import Remasking
from didi.serving import animation
from didi.serving.animation import replay_gif
from didi.serving.colours import _srgb, colour, scale_colour
from didi.serving.page import replay_page
from didi.serving.replay import Replay, record_lane, token_text

PREFIX = "The minister said"


@pytest.fixture(scope="module")
def bundle():
    return didi.load("tiny-news")


@pytest.fixture(scope="module")
def lane(bundle):
    return record_lane(bundle, nfe=4, seed=5, prefix=PREFIX, length=24)


@pytest.fixture(scope="module")
def replay(bundle, lane):
    teacher = record_lane(bundle, nfe=8, seed=5, prefix=PREFIX, length=24, options=SamplingOptions(role="teacher"))
    return Replay(PREFIX, (lane, teacher), "a machine")


@pytest.mark.slow
def test_the_moves_of_a_replay_lead_to_the_text_of_generate(bundle, lane):
    drawn = didi.generate(bundle, num_samples=1, nfe=4, seed=5, prefix=PREFIX, length=24)
    state = lane.state_at(lane.milliseconds)
    assert lane.text == drawn.texts[0] == "".join(text for text, _ in state)
    assert [lane.moves[-1].passes] == drawn.network_passes.tolist()
    assert lane.settings["role"] == "student"
    assert (lane.settings["nfe"], lane.settings["sampler"], lane.seed) == (4, "ancestral", 5)


@pytest.mark.slow
def test_each_position_is_revealed_once_and_the_prompt_never(lane):
    given = [text for text in lane.tokens if text is not None]
    assert "".join(given) == PREFIX
    revealed = [position for move in lane.moves for position in move.positions]
    assert sorted(revealed) == list(range(len(given), 24))
    assert {move for _, move in lane.state_at(lane.milliseconds)} == {0, 1, 2, 3, 4}


def test_a_state_has_the_moves_that_have_ended(lane):
    second = lane.moves[1].milliseconds
    assert {move for _, move in lane.state_at(second) if move} == {1, 2}
    assert lane.state_at(0.0) == [(text, 0) for text in lane.tokens]
    assert [move.milliseconds for move in lane.moves] == sorted(move.milliseconds for move in lane.moves)


def test_the_time_of_a_callback_is_left_out(bundle):
    started = time.perf_counter()
    lane = record_lane(bundle, nfe=2, length=8, on_move=lambda _: time.sleep(0.1))
    assert lane.milliseconds < 1000 * (time.perf_counter() - started) - 195


def test_one_move_is_made_as_a_warm_up(bundle, monkeypatch):
    calls = []
    features = type(bundle.student).features
    monkeypatch.setattr(type(bundle.student), "features", lambda *args: calls.append(1) or features(*args))
    recorded = record_lane(bundle, nfe=2, length=8)
    assert len(calls) == recorded.moves[-1].passes + 1


@pytest.mark.slow
def test_a_remasked_token_is_a_mask_again(bundle):
    options = SamplingOptions("remasking", remask=Remasking(eta=0.5))
    lane = record_lane(bundle, nfe=8, length=16, options=options)
    assert any(text is None for move in lane.moves for text in move.texts)
    assert "".join(text for text, _ in lane.state_at(lane.milliseconds)) == lane.text


def test_uniform_state_diffusion_shows_every_position_after_the_first_move():
    lane = record_lane(didi.load("exact-udlm"), nfe=4)
    assert lane.moves[0].positions == tuple(range(7))
    assert None not in {text for move in lane.moves for text in move.texts}
    assert "".join(text for text, _ in lane.state_at(lane.milliseconds)).strip() == lane.text


@pytest.mark.slow  # imports transformers
def test_an_autoregressive_network_writes_one_position_a_move(bundle):
    shape = AutoregressiveConfig(vocab_size=8192, mask_id=8191, length=12, hidden_size=8, num_blocks=1, num_heads=2)
    with_baseline = replace(bundle, autoregressive=AutoregressiveLM(shape).eval())
    lane = record_lane(with_baseline, prefix=PREFIX, options=SamplingOptions(role="autoregressive"))
    assert [move.positions for move in lane.moves] == [(position,) for position in range(3, 12)]
    assert lane.name == "autoregressive, 12 moves, left to right"


@pytest.mark.parametrize("name", ["tiny-news", "markov"])
def test_texts_of_tokens_join_to_the_text_of_the_sequence(name):
    bundle = didi.load(name)
    ids = torch.randint(1, bundle.process.mask_id, (1, 12), generator=torch.Generator().manual_seed(0))
    (whole,) = decode(bundle, ids)
    assert "".join(token_text(bundle, token) for token in ids[0].tolist()).lstrip(" ") == whole.lstrip(" ")


@pytest.mark.slow
def test_the_page_is_one_file_with_the_record(replay):
    page = replay_page(replay)
    assert not re.search(r"""(?:src|href)=|@import|url\(|^import |https?://(?!www\.w3\.org/2000/svg)""", page, re.M)
    (data,) = re.findall(r'<script type="application/json" id="replay">(.*?)</script>', page, re.S)
    assert json.loads(data) == json.loads(json.dumps(replay.record()))
    assert PREFIX in page
    assert "a machine" in page


def test_no_token_ends_the_script_of_the_page(replay, lane):
    token = "</script><script>alert(1)</script>"
    moves = (replace(lane.moves[0], texts=(token,) * len(lane.moves[0].texts)), *lane.moves[1:])
    page = replay_page(replace(replay, prompt=token, lanes=(replace(lane, moves=moves),)))
    assert token not in page
    assert page.count("</script>") == replay_page(replay).count("</script>")


def frames(gif):
    """Images of a GIF and their durations in milliseconds."""
    image = Image.open(io.BytesIO(gif))
    for number in range(image.n_frames):
        image.seek(number)
        yield image.convert("RGB"), image.info["duration"]


def num_near(image, rgb):
    """Number of pixels of a colour, up to the rounding of a palette."""
    return int((abs(np.asarray(image, dtype=int) - rgb).max(2) <= 3).sum())


@pytest.mark.slow
def test_the_animation_reveals_masks_and_holds_its_last_frame(replay):
    shown = list(frames(replay_gif(replay)))
    ends = {move.milliseconds for lane in replay.lanes for move in lane.moves}
    assert 4 < len(shown) <= len(ends) + 1
    seconds = sum(duration for _, duration in shown) / 1000
    assert seconds == pytest.approx(animation.PLAY_SECONDS + animation.HOLD_SECONDS, abs=0.2)
    assert shown[-1][1] == 1000 * animation.HOLD_SECONDS
    masks = [num_near(image, colour("mask")) for image, _ in shown]
    assert masks[0] > 2000
    assert masks == sorted(masks, reverse=True)
    assert masks[-1] < 200
    assert not num_near(shown[0][0], scale_colour(1.0))
    assert num_near(shown[-1][0], scale_colour(1.0)) > 500


def test_an_animation_with_too_many_lanes_is_refused(replay, lane):
    with pytest.raises(UsageError, match="a GIF shows 3 networks at most; got 4"):
        replay_gif(replace(replay, lanes=(lane,) * 4))


def test_colours_are_converted_from_oklch_and_the_scale_becomes_darker():
    assert _srgb((1.0, 0.0, 0.0)) == (255, 255, 255)
    assert _srgb((0.62796, 0.25768, 29.234)) == (255, 0, 0)  # CSS Color 4, the primaries of sRGB
    assert _srgb((0.45201, 0.31321, 264.052)) == (0, 0, 255)
    lightness = [sum(scale_colour(share / 8)) for share in range(9)]
    assert lightness == sorted(lightness, reverse=True)
