"""Time of a distillation step against the network passes that no implementation of Algorithm 1 can avoid.

    python benchmarks/training_step.py [RECIPE] [--teacher BUNDLE] [--repeats N] [--out FOLDER]

Passes and whole steps are timed alternately in one process, so that a busy machine slows down both. The unavoidable
passes are: forward passes of the student's moves, and backward passes of the scored moves; the teacher's pass at the
intermediate states; forward and backward passes of the discriminator over fake and real sequences; its forward pass
over the rewarded states. A recipe of whole paths is timed with a path of as many moves, of which one is scored.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from pages import write_json
from torch import Tensor

import didi
from didi.apps.train import distillation_source
from didi.evaluation.machine import machine_name
from didi.markdown import markdown_table
from didi.methods.base import Inputs
from didi.recipes import DISTILL, recipe
from didi.recipes.presets import preset
from didi.training.trainer import Trainer, make_trainer


def unavoidable(job: Trainer) -> dict[str, Callable[[], None]]:
    """Functions that make each of the passes, with the shapes of a real step."""
    objective, settings = job.method.settings.objective, job.method.settings.discriminator
    num_states, length, mask_id = (
        job.method.settings.loop.batch_size,
        job.method.settings.data.length,
        job.method.teacher.mask_id,
    )
    num_fake = num_states * (settings.completions or objective.completions)
    num_rewarded = num_states * objective.completions * objective.corruptions
    generator = torch.Generator().manual_seed(0)

    def states(num: int) -> Tensor:
        """Random states with half of the tokens masked, the average for uniform times."""
        tokens = torch.randint(mask_id, (num, length), generator=generator)
        return tokens.masked_fill(torch.rand(num, length, generator=generator) < 0.5, mask_id)

    all_masks, middle, both, rewarded = (
        torch.full((1, length), mask_id), states(num_states), states(2 * num_fake), states(num_rewarded),
    )  # fmt: skip
    sigma = {len(z): torch.rand(len(z)) for z in (both, rewarded)}

    def student_move(z: Tensor) -> None:
        logits = job.method.student.head(job.method.student.features(z)[z == mask_id])
        logits.backward(torch.ones_like(logits))

    # Before the scored move, a state has made 0 to K - 1 moves; the first move leaves the fully masked state.
    num_moves = objective.moves or 1  # of a path
    alive = [round(num_states * (num_moves - 1 - done) / num_moves) for done in range(1, num_moves)]
    path = [states(num) for num in alive if num]

    def student_path() -> None:
        with torch.no_grad():
            job.method.student.features(all_masks)
            for z in path:
                job.method.student.features(z)

    def teacher_move() -> None:
        with torch.no_grad():
            job.method.teacher.head(job.method.teacher.features(middle)[middle == mask_id])

    def discriminator_update() -> None:
        job.method.discriminator.train()(both, sigma[len(both)]).sum().backward()

    def rewards() -> None:
        with torch.no_grad():
            job.method.discriminator.eval()(rewarded, sigma[len(rewarded)])

    moves_before = {f"student, up to {num_moves - 1} moves before, forward": student_path} if path else {}
    return moves_before | {
        "student, first move, forward and backward": lambda: student_move(all_masks),
        "student, scored move, forward and backward": lambda: student_move(middle),
        "teacher, scored move, forward": teacher_move,
        "discriminator, fake and real, forward and backward": discriminator_update,
        "discriminator, rewards, forward": rewards,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe", nargs="?", default="tiny-news")
    parser.add_argument("--teacher", help="instead of the recipe's")
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--out", type=Path, help="folder for training-step.json")
    args = parser.parse_args()
    config = recipe(DISTILL, args.recipe)
    config = replace(config, teacher=args.teacher or config.teacher)
    if (moves := config.objective.moves) and config.objective.trajectory == "whole-path":
        config = preset(config, "two-moves")
        config = replace(config, objective=replace(config.objective, trajectory="path", moves=moves))
    is_plain = config.loop.accumulation == config.discriminator.steps_per_student_step == 1
    if not (is_plain and config.objective.trajectory != "one-step" and config.discriminator.is_time_conditioned):
        parser.error(
            "the counted passes are those of one discriminator update and two moves or more in a step, without "
            f"accumulation, with time input of the discriminator; {args.recipe} differs: choose another recipe"
        )
    teacher = didi.load(config.teacher)
    with tempfile.TemporaryDirectory() as folder:
        source = distillation_source(config, teacher)
        job = make_trainer(config, Inputs(source, torch.device("cpu"), Path(folder), teacher))
        passes = unavoidable(job)
        first_step = job.method.warmup_steps  # first step with a student update
        times: dict[str, list[float]] = {name: [] for name in [*passes, "step"]}
        for number in range(args.repeats + 1):
            work = {**passes, "step": lambda number=number: job.step(first_step + number)}
            for name, run in work.items():
                for network in (job.method.student, job.method.discriminator):
                    network.zero_grad(set_to_none=True)
                begin = time.perf_counter()
                run()
                if number:  # the first round warms up
                    times[name].append(time.perf_counter() - begin)
    # Ratios are computed within a round, since a slow phase of the machine affects passes and step of a round alike.
    ratios = [step / sum(parts) for step, *parts in zip(times["step"], *(times[name] for name in passes), strict=True)]
    median = {name: statistics.median(values) for name, values in times.items()}
    floor = sum(median[name] for name in passes)
    seconds = {name: median[name] for name in passes} | {"**passes, together**": floor, "**step**": median["step"]}
    body = [[name, f"{1000 * value:.0f}", f"{value / median['step']:.0%}"] for name, value in seconds.items()]
    print("\n".join(markdown_table(["", "ms", "share of the step"], body)))
    ratio = statistics.median(ratios)
    low, _, high = statistics.quantiles(ratios, n=4)
    print(f"\nStep over passes: {ratio:.2f} (quartiles {low:.2f}, {high:.2f}) in {args.repeats} rounds.")
    print(f"{args.recipe}, {machine_name()}.")
    if args.out:
        record = {"recipe": args.recipe, "machine": machine_name(), "seconds": times, "ratio": ratio}
        write_json(args.out / "training-step.json", record)


if __name__ == "__main__":
    main()
