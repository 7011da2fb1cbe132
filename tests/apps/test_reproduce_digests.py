"""Results of ``didi reproduce`` are stored by the content of a bundle, not by its path."""

import operator
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from safetensors.torch import load_file, save_file

from didi.apps.reproduce import study
from didi.apps.reproduce.cells import Cell, LikelihoodCell, Run
from didi.apps.reproduce.study import Sampling, Study
from didi.errors import DidiError
from didi.models.bundle import digest

from ..two_moves import MARKOV


@pytest.fixture
def copied(tmp_path):
    """Function that copies the bundled model ``markov`` to a folder of the test."""
    return lambda name: Path(shutil.copytree(Path(study.__file__).parents[2] / "bundles" / "markov", tmp_path / name))


def change_weights(folder):
    """Halve all weights of the teacher, without digests in the manifest."""
    file = folder / "teacher" / "model.safetensors"
    save_file({name: value / 2 for name, value in load_file(file).items()}, file)
    manifest = yaml.safe_load((folder / "bundle.yaml").read_text())
    manifest["provenance"].pop("weights_sha256", None)
    (folder / "bundle.yaml").write_text(yaml.safe_dump(manifest))
    return folder


def test_cells_of_a_bundle_are_named_by_its_content_and_not_by_its_path(copied):
    here, moved = str(copied("here/bundle")), str(copied("moved/bundle"))
    changed = str(change_weights(copied("changed/bundle")))
    names = [Cell(bundle, "teacher").name(digest) for bundle in (here, moved, changed)]
    assert names[0] == names[1] == f"bundle-{digest(here)[:10]}-teacher-ancestral-8"
    assert names[2] == f"bundle-{digest(changed)[:10]}-teacher-ancestral-8" != names[0]
    runs = [Run(replace(MARKOV, teacher=teacher)).name(digest) for teacher in (here, moved, changed, "markov")]
    assert runs[0] == runs[1] == runs[3] != runs[2]


@pytest.mark.slow
def test_figures_of_a_bundle_that_changed_under_its_path_are_measured_again(copied, tmp_path):
    teacher = copied("teacher")
    cells = [Cell(str(teacher), "teacher", nfe=1), LikelihoodCell(str(teacher), "teacher", "markov")]

    def figures():
        measured = Study(tmp_path / "study", Sampling(8, "markov", likelihood_sequences=4), workers=1)
        measured.complete(cells)
        return measured.row(cells[0]).gen_ppl, measured.likelihood(cells[1]).likelihood.nats

    before = figures()
    assert figures() == before
    original = (teacher / "teacher" / "model.safetensors").read_bytes()
    change_weights(teacher)
    assert all(map(operator.ne, figures(), before))
    (teacher / "teacher" / "model.safetensors").write_bytes(original)
    assert figures() == before
    assert len(list((tmp_path / "study" / "cells").iterdir())) == 4


def test_a_bundle_that_changes_while_a_study_runs_is_refused(copied, tmp_path):
    teacher = str(copied("teacher"))
    begun = Study(tmp_path / "study", Sampling(8, "markov"), workers=1)
    begun.digest(teacher)
    change_weights(Path(teacher))
    with pytest.raises(DidiError, match=f"bundle {teacher} has changed since this study began: start it again"):
        begun.complete([Cell(teacher, "teacher", nfe=1)])
    with pytest.raises(DidiError, match=f"bundle {teacher} has changed since this study began: start it again"):
        study.train_run(Run(replace(MARKOV, teacher=teacher)), begun)
