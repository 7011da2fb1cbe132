"""The model card of a bundle: contents, origin and usage."""

from collections.abc import Mapping
from typing import Any

import yaml

from didi.diffusion import Process
from didi.markdown import markdown_table
from didi.models.untrusted import PlainDumper

TEACHER_PROCESS = "teacher_process"  # key in the provenance if the teacher was trained with another process
AUTOREGRESSIVE = "autoregressive baseline, one token in each pass"
USES = {
    "student": "few-step masked-diffusion generator, distilled",
    "teacher": "many-step masked-diffusion generator",
    "discriminator": "estimates the log-density ratio of student over teacher; guided sampling needs it",
    "autoregressive": AUTOREGRESSIVE,
}
UNIFORM_STATE_USES = {
    "student": "few-step uniform-state diffusion generator, distilled",
    "teacher": "many-step uniform-state diffusion generator",
    "discriminator": "estimates the log-density ratio of student over real sequences; guided sampling needs it",
    "autoregressive": AUTOREGRESSIVE,
}


def model_card(
    sizes: Mapping[str, int], process: Process, provenance: Mapping[str, Any], intended_nfe: int | None = None
) -> str:
    """The model card in Markdown, with the header of the Hub.

    Args:
        sizes: number of parameters of each network, by role.
        process: diffusion process of the networks.
        provenance: provenance of the bundle.
        intended_nfe: number of moves that the student is trained for; None if unknown.
    """
    from huggingface_hub import ModelCardData  # imported here, as loading a bundle does not need it

    is_diffusion = set(sizes) != {"autoregressive"}
    kind, uses = ("masked-diffusion", USES) if process.mask_id is not None else ("uniform-state", UNIFORM_STATE_USES)
    kind = kind if is_diffusion else "autoregressive"
    method = f" by method `{provenance['method']}`" if "method" in provenance else ""
    uses = uses | {"student": uses["student"] + method}
    tags = [kind, "text-generation"] if is_diffusion else ["text-generation"]
    header = ModelCardData(library_name="didi-instruct", tags=tags)
    origin = {
        name: provenance[name] for name in ("recipe", "corpus", "seed", "machine", "source") if name in provenance
    }
    settings = yaml.dump(dict(provenance), Dumper=PlainDumper, sort_keys=False)
    process_line = f"Process: {process.name} diffusion, {process.schedule.name} noise schedule." if is_diffusion else ""
    return "\n".join(
        [
            f"---\n{header.to_yaml()}\n---",
            f"# {provenance.get('recipe', f'{kind.capitalize()} bundle')}\n",
            *markdown_table(
                ["network", "parameters", "what it is"],
                [[role, f"{size:,}", uses[role]] for role, size in sizes.items()],
                align="lrl",
            ),
            f"\n{process_line}",
            *([_moves_line(intended_nfe)] if "student" in sizes else []),
            *([_teacher_line(trained, process)] if (trained := provenance.get(TEACHER_PROCESS)) else []),
            *(f"{name.capitalize()}: {value}." for name, value in origin.items()),
            "\n```python",
            "import didi\n",
            'bundle = didi.load("this folder, or owner/name on the Hub")',
            "print(didi.generate(bundle, num_samples=4, seed=0).texts)",
            "```\n",
            "The quality was not measured when this card was written: `didi evaluate` measures perplexity and entropy, "
            "`didi likelihood` the likelihood. A language model repeats errors and prejudices of its corpus.\n",
            f"<details><summary>All settings</summary>\n\n```yaml\n{settings}```\n\n</details>\n",
        ]
    )


def _moves_line(intended_nfe: int | None) -> str:
    if intended_nfe is None:
        return "Moves: the number that the student is trained for is not recorded; choose it with `--nfe`."
    return f"Moves: the student is trained for {intended_nfe}, the default of `didi generate`."


def _teacher_line(teacher_process: str, process: Process) -> str:
    return (
        f"The teacher was trained as {teacher_process}; in this bundle its outputs, normalised, are the distribution "
        f"of the clean token of {process.name} diffusion."
    )
