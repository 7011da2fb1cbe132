"""Student and teacher of ``tiny-news`` at equal entropy, from sample sets larger than those of its page.

    python benchmarks/equal_entropy.py --sets DIR [--num-samples 1024]

Scored sets are kept in ``--sets``, so that the script can be interrupted and resumed. It writes
``docs/results/equal-entropy.json``.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from pages import DOCS, write_json
from safetensors.torch import load_file, save_file

import didi
from didi.evaluation.diversity import token_entropy
from didi.evaluation.equal_entropy import PerSequence, per_sequence, ratio_at_equal_entropy
from didi.evaluation.judges import load_judge
from didi.evaluation.machine import machine_name

MODEL, JUDGE = "tiny-news", "smollm2-135m"
SEED = 20_264  # no settings were chosen with this seed
TEACHER_NFE, TEMPERATURES = 128, (0.9, 1.0)
STUDENT_NFES = (8, 16)


def scored(role: str, nfe: int, temperature: float, num_samples: int, folder: Path) -> PerSequence:
    """Scores of a sample set; an existing file in ``folder`` is reused."""
    file = folder / f"{role}-{nfe}-{temperature:g}-{num_samples}.safetensors"
    if not file.is_file():
        drawn = didi.generate(
            didi.load(MODEL), num_samples=num_samples, nfe=nfe, seed=SEED, role=role, temperature=temperature
        )
        scores = load_judge(JUDGE).score(drawn.texts, drawn.tokens)
        folder.mkdir(parents=True, exist_ok=True)
        save_file({"values": per_sequence(scores, token_entropy(drawn.tokens))}, file)
    return load_file(file)["values"]


def main(words: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", type=Path, required=True)
    parser.add_argument("--num-samples", type=int, default=1024)
    args = parser.parse_args(words)
    sweep = [scored("teacher", TEACHER_NFE, t, args.num_samples, args.sets) for t in TEMPERATURES]
    rows = []
    for nfe in STUDENT_NFES:
        ratio, interval = ratio_at_equal_entropy(scored("student", nfe, 1.0, args.num_samples, args.sets), sweep)
        rows.append({"nfe": nfe, "against": f"teacher at {TEACHER_NFE}", "ratio": ratio, "interval": interval})
        print(f"student at {nfe}: {ratio:.3f} [{interval[0]:.3f}, {interval[1]:.3f}]")
    about = {"model": MODEL, "judge": JUDGE, "seed": SEED, "num_samples": args.num_samples, "machine": machine_name()}
    write_json(DOCS / "results" / "equal-entropy.json", about | {"rows": rows})


if __name__ == "__main__":
    main()
