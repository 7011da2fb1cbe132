"""Jobs that share passes return, bit for bit, the samples of jobs that run alone."""

import random
from dataclasses import replace

import pytest
import torch

import didi
from didi.diffusion.canvas import Canvas
from didi.errors import DidiError, NotFinite
from didi.models.bundle import Bundle
from didi.sampling.ancestral import Ancestral
from didi.sampling.completion import planned
from didi.sampling.draw_check import DrawCheck
from didi.sampling.options import SamplingOptions
from didi.sampling.passes import TokenDraw
from didi.sampling.prompt import canvas_from_prompt
from didi.sampling.token_distribution import TokenDistribution
from didi.serving import scheduler
from didi.serving.job import Cancelled, Job, TimedOut
from didi.serving.scheduler import Scheduler, pass_groups
from didi.serving.shared import padded_length, shared_features, shared_tokens

SHARED = ("ancestral", "tau-leaping", "first-hitting", "confidence", "entropy-bounded", "remasking")


def job_of(bundle, *, num=1, seed=0, nfe=None, length=None, prefix=None, **options):
    options = SamplingOptions(**options)
    length = length or bundle.network(options.role).length
    canvas = canvas_from_prompt(bundle, length, prefix=prefix).expand(num)
    plan = planned(bundle, canvas, indices=range(num), seed=seed, nfe=nfe, options=options)
    return Job(plan, on_end=lambda job: None)


def run(jobs, max_batch=64, arrivals=None):
    """The scheduler after it has run all jobs; ``arrivals`` has the round in which each arrives."""
    shared, left = Scheduler(max_batch), sorted(zip(arrivals or [0] * len(jobs), range(len(jobs)), strict=True))
    number = 0
    while left or not shared.is_idle:
        while left and left[0][0] <= number:
            shared.waiting.append(jobs[left.pop(0)[1]])
        shared.step()
        number += 1
        assert number < 1000
    return shared


def generated(bundle, *, num=1, **options):
    return didi.generate(bundle, num_samples=num, **options)


@pytest.mark.parametrize(
    "sampler", [pytest.param(name, marks=pytest.mark.slow) if name == "first-hitting" else name for name in SHARED]
)
def test_jobs_that_share_passes_return_the_samples_of_generate(sampler, make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0))
    requests = [
        {"seed": seed, "num": 1 + seed % 3, "nfe": (3, 5, 8)[seed % 3], "sampler": sampler} for seed in range(9)
    ]
    jobs = [job_of(bundle, **request) for request in requests]
    shared = run(jobs, arrivals=[0, 0, 1, 1, 2, 3, 5, 5, 5])
    assert shared.num_passes < sum(int(job.network_passes.max()) for job in jobs)
    for job, request in zip(jobs, requests, strict=True):
        alone = generated(bundle, **request)
        assert job.error is None
        assert torch.equal(job.tokens, alone.tokens)
        assert torch.equal(job.network_passes, alone.network_passes)


@pytest.mark.slow
def test_mixed_jobs_on_real_weights_return_the_samples_of_generate(news):
    """Several roles, lengths, prompts, numbers of moves and samplers; guided sampling does not share its passes."""
    requests = [
        {"seed": 1, "nfe": 4},
        {"seed": 2, "nfe": 8, "role": "teacher", "num": 2},
        {"seed": 3, "nfe": 5, "prefix": "The prime minister said"},
        {"seed": 4, "nfe": 3, "length": 40, "prefix": "In London"},
        {"seed": 5, "nfe": 3, "length": 17},
        {"seed": 6, "nfe": 4, "sampler": "guided", "length": 32},
        {"seed": 7, "nfe": 4, "temperature": 0.5, "top_p": 0.9, "length": 48},
        {"seed": 8, "nfe": 4, "sampler": "confidence", "length": 24},
    ]
    jobs = [job_of(news, **request) for request in requests]
    run(jobs, arrivals=[0, 0, 0, 1, 1, 1, 2, 2])
    for job, request in zip(jobs, requests, strict=True):
        assert torch.equal(job.tokens, generated(news, **request).tokens), request


@pytest.mark.slow
def test_samples_do_not_depend_on_other_jobs(news):
    """40 requests one after the other, and together in three random orders with random arrivals."""
    source = random.Random(0)
    requests = [
        {"seed": seed, "nfe": source.randint(1, 6), "length": source.randint(1, 70), "num": source.choice([1, 1, 3])}
        for seed in range(40)
    ]

    def drawn(arrivals, order, max_batch):
        jobs = [job_of(news, **request) for request in requests]
        run([jobs[index] for index in order], max_batch, arrivals)
        return [job.tokens for job in jobs]

    alone = drawn([10 * index for index in range(40)], range(40), 64)
    for max_batch in (4, 16, 64):
        order = source.sample(range(40), 40)
        together = drawn([source.randint(0, 10) for _ in order], order, max_batch)
        assert all(map(torch.equal, alone, together))


@pytest.mark.slow
def test_rows_of_a_time_conditioned_network_keep_their_own_noise_levels(make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0, is_time_conditioned=True))
    requests = [{"seed": seed, "nfe": nfe, "sampler": sampler} for seed, (nfe, sampler) in enumerate(
        [(2, "ancestral"), (7, "ancestral"), (4, "first-hitting"), (3, "remasking")])]  # fmt: skip
    jobs = [job_of(bundle, **request) for request in requests]
    run(jobs)
    for job, request in zip(jobs, requests, strict=True):
        assert torch.equal(job.tokens, generated(bundle, **request).tokens)


def test_budget_conditioned_networks_share_passes_only_for_equal_numbers_of_moves(make_dit, randomise):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0, is_budget_conditioned=True))
    jobs = [job_of(bundle, seed=seed, nfe=nfe) for seed, nfe in enumerate([2, 2, 5])]
    for job in jobs:
        job.start()
    assert [len(group) for group in pass_groups(jobs)] == [2, 1]
    again = [job_of(bundle, seed=seed, nfe=nfe) for seed, nfe in enumerate([2, 2, 5])]
    run(again)
    for seed, job in enumerate(again):
        assert torch.equal(job.tokens, generated(bundle, seed=seed, nfe=(2, 2, 5)[seed]).tokens)


@pytest.mark.slow
def test_jobs_of_one_network_and_token_distribution_share_the_head(news, monkeypatch):
    rows, head = [], type(news.student).head
    monkeypatch.setattr(type(news.student), "head", lambda self, x: rows.append(len(x)) or head(self, x))
    requests = [{"seed": seed, "nfe": 1, "length": length} for seed, length in enumerate([8, 16, 40])]
    requests += [{"seed": 5, "nfe": 1, "length": 12, "temperature": 0.5}]
    jobs = [job_of(news, **request) for request in requests]
    run(jobs)
    assert rows == [64, 16]  # the rows of all lengths together; 12 rows, padded
    monkeypatch.undo()
    for job, request in zip(jobs, requests, strict=True):
        assert torch.equal(job.tokens, generated(news, **request).tokens)


@pytest.mark.slow
def test_logits_of_a_row_do_not_depend_on_the_rows_beside_it(news, monkeypatch):
    """Bit for bit, on the CPU."""
    seen, sampler = [], Ancestral(news.student, news.process)

    def sample(_, logits, *__):
        seen.append(logits)
        return torch.zeros(len(logits), dtype=torch.long)

    monkeypatch.setattr(TokenDistribution, "sample", sample)
    features = torch.randn(200, news.student.config.hidden_size, generator=torch.Generator().manual_seed(0))
    sizes = [1, 2, 5, 12, 30, 150]
    draws = [TokenDraw(rows, torch.zeros(len(rows))) for rows in features.split(sizes)]
    shared_tokens([sampler] * len(draws), draws)
    for draw in draws:
        shared_tokens([sampler], [draw])
    assert [torch.equal(*pair) for pair in zip(seen[0].split(sizes), seen[1:], strict=True)] == [True] * 6


@pytest.mark.slow
def test_a_shared_pass_that_fails_is_run_again_for_each_request(news, monkeypatch):
    def features(denoiser, process, passes):
        if len(passes) > 1:
            raise DidiError("out of memory")
        return shared_features(denoiser, process, passes)

    monkeypatch.setattr(scheduler, "shared_features", features)
    jobs = [job_of(news, seed=seed, nfe=2) for seed in range(3)]
    run(jobs)
    for seed, job in enumerate(jobs):
        assert torch.equal(job.tokens, generated(news, seed=seed, nfe=2).tokens)


def test_the_draw_check_of_a_request_sees_only_its_own_logits(news, monkeypatch):
    """On a GPU a check raises at the end of its own request, so the logits of other requests must not reach it."""
    collected = []
    monkeypatch.setattr(DrawCheck, "check", lambda check, scores: collected.append((check, scores.isfinite().all())))
    samplers = [Ancestral(news.student, news.process) for _ in range(3)]
    samplers = [replace(sampler, token_distribution=TokenDistribution()) for sampler in samplers]
    features = torch.zeros(3, news.student.config.hidden_size)
    features[1] = torch.nan
    draws = [TokenDraw(row, torch.zeros(1)) for row in features.split(1)]
    shared_tokens(samplers, draws)
    is_finite = {id(check): bool(value) for check, value in collected}
    assert [is_finite[id(sampler.token_distribution.draw_check)] for sampler in samplers] == [True, False, True]


def test_the_logits_of_a_draw_are_bounded(make_dit, monkeypatch):
    monkeypatch.setattr(scheduler, "LOGITS", 40 * 50)
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16))
    jobs = [job_of(bundle, seed=seed, nfe=1) for seed in range(7)]
    for job in jobs:
        job.start()
        job.advance(torch.zeros(1, 16, 16))
    assert [len(group) for group in scheduler.draw_groups(jobs)] == [3, 3, 1]


def test_a_job_whose_logits_are_not_finite_fails_alone(make_dit, monkeypatch):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0))
    features = bundle.teacher.features

    def damaged(inputs, *others):
        values = features(inputs, *others).clone()
        values[(inputs == 7).any(1)] = torch.nan
        return values

    jobs = [job_of(bundle, seed=1, nfe=1), job_of(bundle, seed=2, nfe=1), job_of(bundle, seed=3, nfe=1)]
    jobs[1].plan.canvas.tokens[:, 0], jobs[1].plan.canvas.is_free[:, 0] = 7, False
    expected = [generated(bundle, seed=seed, nfe=1).tokens for seed in (1, 3)]
    monkeypatch.setattr(bundle.teacher, "features", damaged)
    run(jobs)
    assert isinstance(jobs[1].error, NotFinite)
    assert [torch.equal(job.tokens, tokens) for job, tokens in zip(jobs[::2], expected, strict=True)] == [True, True]


def test_a_pass_has_a_bounded_number_of_positions(make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=128))
    jobs = [job_of(bundle, seed=seed, nfe=2) for seed in range(40)]
    for job in jobs:
        job.start()
    assert [len(group) for group in pass_groups(jobs)] == [16, 16, 8]


def test_a_length_is_padded_to_a_power_of_two_from_16_up_to_the_length_of_the_network():
    assert [padded_length(length, 128) for length in (1, 16, 17, 64, 65, 128)] == [16, 16, 32, 64, 128, 128]
    assert [padded_length(length, 100) for length in (16, 70, 100)] == [16, 100, 100]
    assert padded_length(9, 12) == 12


def test_running_sequences_are_limited_by_the_batch_size(make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16))
    scheduler = Scheduler(max_batch=4)
    jobs = [job_of(bundle, seed=seed, num=2, nfe=4) for seed in range(3)] + [job_of(bundle, num=9, nfe=2)]
    scheduler.waiting.extend(jobs)
    largest = []
    while not scheduler.is_idle:
        scheduler.step()
        largest.append(sum(map(len, scheduler.running)))
    assert set(largest) <= {0, 2, 4, 9}
    assert all(job.tokens is not None for job in jobs)


def test_a_job_with_nothing_to_draw_ends_at_once(make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16))
    canvas = Canvas.given(torch.full((1, 16), 3), torch.zeros(1, 16, dtype=torch.bool))
    for sampler in ("ancestral", "published"):
        plan = planned(bundle, canvas, indices=[0], nfe=2, options=SamplingOptions(sampler=sampler))
        job = Job(plan, on_end=lambda job: None)
        run([job])
        assert job.tokens.tolist() == [[3] * 16]


def test_cancelled_and_late_jobs_leave_the_others_as_they_are(make_dit):
    bundle = Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0))
    scheduler, ended = Scheduler(2), []
    jobs = [job_of(bundle, seed=seed, nfe=6) for seed in range(4)]
    for job in jobs:
        job.on_end = ended.append
    scheduler.waiting.extend(jobs)
    scheduler.step()
    jobs[0].cancel()  # running
    jobs[2].cancel()  # waiting
    jobs[3].deadline = 0.0
    while not scheduler.is_idle:
        scheduler.step()
    assert isinstance(jobs[0].error, Cancelled)
    assert isinstance(jobs[2].error, Cancelled)
    assert isinstance(jobs[3].error, TimedOut)
    assert sorted(map(id, ended)) == sorted(map(id, jobs))
    assert torch.equal(jobs[1].tokens, generated(bundle, seed=1, nfe=6).tokens)


def test_a_network_that_is_not_finite_fails_its_own_jobs(make_dit):
    good, bad = (Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0)) for _ in range(2))
    with torch.no_grad():
        bad.teacher.blocks[0].attn_qkv.weight[0, 0] = torch.nan
    jobs = [job_of(good, seed=1, nfe=4), job_of(bad, seed=1, nfe=4), job_of(bad, seed=2, sampler="published", nfe=4)]
    run(jobs)
    assert isinstance(jobs[1].error, NotFinite)
    assert isinstance(jobs[2].error, NotFinite)
    assert torch.equal(jobs[0].tokens, generated(good, seed=1, nfe=4).tokens)


def test_a_failing_pass_ends_the_jobs_that_share_it(make_dit, monkeypatch):
    good, bad = (Bundle(teacher=make_dit(vocab_size=40, length=16, scale=3.0)) for _ in range(2))
    jobs = [job_of(good, nfe=4), job_of(bad, nfe=4), job_of(bad, nfe=3)]
    monkeypatch.setattr(bad.teacher, "features", lambda *_: 1 / 0)
    run(jobs)
    assert [type(job.error) for job in jobs] == [type(None), ZeroDivisionError, ZeroDivisionError]
