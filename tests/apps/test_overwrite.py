"""No command replaces files in ``--out`` without ``--overwrite``."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

import didi as package
from didi.apps.convert import export
from didi.apps.outputs import refuse_existing
from didi.errors import UsageError
from didi.models.bundle import Bundle, save

SMALL = ["--data.length", "16", "--loop.batch-size", "2", "--loop.validation-sequences", "2", "--max-steps", "1"]


@pytest.fixture
def exact_bundle(make_dit, tmp_path):
    """Path of a bundle of the corpus ``exact``, whose student and teacher are one tiny network."""
    network = make_dit(vocab_size=5, length=4)
    bundle = Bundle(teacher=network, student=network, provenance={"corpus": "exact"})
    return str(save(bundle, tmp_path / "model"))


@pytest.fixture
def checkpoint(make_dit, tmp_path):
    """Folder of another tiny network in the MDLM layout."""
    return str(export(Bundle(teacher=make_dit()), tmp_path / "public"))


def assert_needs_overwrite(didi, out, *words):
    """Check that the command is refused in one line without ``--overwrite``, changes no file, and runs with it."""
    files = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    status, out_text, error = didi(*words, "--out", out)
    assert (status, out_text, error.count("\n")) == (2, "", 1)
    assert "--overwrite" in error
    assert str(out) in error
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == files
    assert didi(*words, "--out", out, "--overwrite")[0] == 0


@pytest.mark.parametrize("name", ["metrics.json", "samples.jsonl", "report.md", "perplexity.png", "frontier.png"])
def test_evaluate_refuses_existing_results_before_any_work(didi, tmp_path, monkeypatch, name):
    monkeypatch.setattr("didi.apps.evaluate.load", lambda _: pytest.fail("work began"))
    (tmp_path / name).write_text("old")
    status, _, error = didi("evaluate", "--model", "exact", "--out", tmp_path)
    assert (status, error.count("\n")) == (2, 1)
    assert f"holds {name}: add --overwrite" in error


@pytest.mark.slow
def test_evaluate_replaces_results_that_are_to_be_overwritten(didi, exact_bundle, tmp_path):
    out = tmp_path / "results"
    words = ["evaluate", "--model", exact_bundle, "--nfe", "1", "--num-samples", "4", "--judge", "exact"]
    assert didi(*words, "--out", out)[0] == 0
    assert_needs_overwrite(didi, out, *words, "--seed", "1")
    assert json.loads((out / "metrics.json").read_text())[0]["seed"] == 1


@pytest.mark.slow
def test_evaluate_writes_beside_other_files(didi, exact_bundle, tmp_path):
    (tmp_path / "notes.md").write_text("mine")
    words = ["evaluate", "--model", exact_bundle, "--nfe", "1", "--num-samples", "4", "--judge", "exact"]
    assert didi(*words, "--out", tmp_path)[0] == 0


REFUSED = {
    "evaluate": (["evaluate", "--model", "exact", "--joint", "--num-samples", "2"], "samples"),
    "bench": (["bench", "--model", "exact", "--length", "99"], "length lies in"),
    "likelihood": (["likelihood", "--model", "exact", "--data", "unknown"], "unknown"),
}


@pytest.mark.parametrize(("words", "problem"), REFUSED.values(), ids=REFUSED)
def test_a_refused_command_leaves_no_folder(didi, tmp_path, words, problem):
    status, _, error = didi(*words, "--out", tmp_path / "new" / "out")
    assert (status, error.count("\n")) == (2, 1)
    assert problem in error
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("words", [words for words, _ in REFUSED.values()], ids=REFUSED)
def test_a_file_in_the_path_of_the_folder_is_refused(didi, tmp_path, words):
    (tmp_path / "file").touch()
    status, _, error = didi(*words, "--out", tmp_path / "file" / "out")
    assert (status, error) == (2, f"didi: Not a directory: {tmp_path / 'file' / 'out'}\n")


def test_likelihood_refuses_existing_results(didi, exact_bundle, tmp_path):
    words = ["likelihood", "--model", exact_bundle, "--num-sequences", "2", "--num-draws", "1"]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "likelihood.md").write_text("old")
    assert_needs_overwrite(didi, tmp_path / "out", *words)
    assert (tmp_path / "out" / "likelihood.md").read_text() != "old"


def test_bench_refuses_existing_results(didi, tmp_path, monkeypatch):
    monkeypatch.setattr("didi.apps.bench.compare", lambda *_, **__: [])
    monkeypatch.setattr("didi.apps.bench.speed_table", lambda *_, **__: "new\n")
    (tmp_path / "bench.json").write_text("old")
    assert_needs_overwrite(didi, tmp_path, "bench", "--model", "markov")
    assert (tmp_path / "bench.md").read_text() == "new\n"


@pytest.mark.slow
def test_compare_keeps_the_figure_of_an_evaluation(didi, exact_bundle, tmp_path):
    for name in ("a", "b"):
        words = ["evaluate", "--model", exact_bundle, "--nfe", "1", "--num-samples", "4", "--judge", "exact"]
        assert didi(*words, "--out", tmp_path / name)[0] == 0
    (tmp_path / "a" / "frontier.png").write_text("old")
    assert_needs_overwrite(didi, tmp_path / "a", "compare", tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "a" / "frontier.png").read_bytes()[1:4] == b"PNG"


def test_convert_replaces_a_bundle_that_is_to_be_overwritten(didi, exact_bundle, checkpoint, tmp_path):
    assert_needs_overwrite(didi, tmp_path / "model", "convert", "mdlm", checkpoint)
    assert package.load(exact_bundle).student is None


def test_convert_refuses_before_the_checkpoint_is_read(didi, exact_bundle, tmp_path, monkeypatch):
    monkeypatch.setattr("didi.apps.convert.read_checkpoint", lambda *_, **__: pytest.fail("work began"))
    status, _, error = didi("convert", "mdlm", "owner/name", "--out", exact_bundle)
    assert status == 2
    assert "a folder without a bundle; " in error
    assert "holds bundle.yaml: add --overwrite to replace it, or" in error


@pytest.mark.parametrize(
    ("names", "message"), [(["a"], "a: add --overwrite to replace it,"), (["a", "b"], "replace them,")]
)
def test_a_refusal_names_one_file_in_the_singular_and_two_in_the_plural(tmp_path, names, message):
    for name in names:
        (tmp_path / name).touch()
    with pytest.raises(UsageError, match=f"without earlier results; .*{message}"):
        refuse_existing(tmp_path, ("a", "b"), overwrite=False)


def test_an_export_replaces_only_an_export(didi, exact_bundle, checkpoint, tmp_path):
    file = tmp_path / "public" / "model.safetensors"
    save_file({name: value + 1 for name, value in load_file(file).items()}, file)
    assert_needs_overwrite(didi, tmp_path / "public", "convert", "export", exact_bundle)
    (tmp_path / "public" / "thesis.tex").touch()
    status, _, error = didi("convert", "export", exact_bundle, "--out", tmp_path / "public", "--overwrite")
    assert status == 2
    assert error.endswith(f"{tmp_path / 'public'} exists: choose another\n")
    assert (tmp_path / "public" / "thesis.tex").exists()


@pytest.mark.slow
def test_a_run_replaces_a_run_that_is_to_be_overwritten(didi, tmp_path):
    out = tmp_path / "run"
    words = ["pretrain", "markov", *SMALL]
    assert didi(*words, "--out", out)[0] == 0
    first = (out / "bundle" / "teacher" / "model.safetensors").read_bytes()
    assert_needs_overwrite(didi, out, *words, "--seed", "1")
    assert (out / "bundle" / "teacher" / "model.safetensors").read_bytes() != first
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [1, 1]
    status, _, error = didi(*words, "--seed", "1", "--out", out, "--resume", "--overwrite")
    assert status == 2
    assert "give one of them" in error


@pytest.mark.slow
def test_a_run_refuses_a_bundle_that_is_not_its_own(didi, exact_bundle, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(exact_bundle, out / "bundle")
    assert_needs_overwrite(didi, out, "pretrain", "markov", *SMALL)
    assert package.load(out / "bundle").provenance["recipe"] == "markov"


@pytest.mark.slow
def test_distill_does_not_delete_its_teacher(didi, tmp_path):
    out = tmp_path / "run"
    assert didi("pretrain", "markov", *SMALL, "--out", out)[0] == 0
    words = ["distill", "markov", *SMALL, "--teacher", out / "bundle", "--out", out]
    status, _, error = didi(*words)
    assert (status, "holds a run" in error) == (2, True)
    status, _, error = didi(*words, "--overwrite")
    assert (status, "which is the teacher: choose another --out" in error) == (2, True)
    assert package.load(out / "bundle").teacher is not None


@pytest.mark.slow
def test_a_run_does_not_delete_the_bundle_that_it_starts_from(didi, tmp_path):
    out = tmp_path / "run"
    assert didi("pretrain", "markov", *SMALL, "--out", out)[0] == 0
    status, _, error = didi("pretrain", "markov", *SMALL, "--start", out / "bundle", "--out", out, "--overwrite")
    assert (status, "which is the start: choose another --out" in error) == (2, True)
    distill = ["distill", "markov", *SMALL, "--start", out / "bundle", "--out", out, "--overwrite"]
    status, _, error = didi(*distill)
    assert (status, "which is the start: choose another --out" in error) == (2, True)
    assert (out / "bundle" / "bundle.yaml").is_file()


@pytest.mark.slow
def test_a_student_records_the_provenance_of_its_teacher_and_its_start(didi, tmp_path):
    words = ["--max-steps", "1", "--loop.batch-size", "2", "--loop.validation-sequences", "2"]
    assert didi("distill", "exact", "--start", "exact-8", *words, "--out", tmp_path / "run")[0] == 0
    provenance = package.load(tmp_path / "run" / "bundle").provenance
    start = package.load("exact-8").provenance
    assert provenance["start"] == start
    assert provenance["teacher"] == package.load("exact").provenance["teacher"] != start


def test_a_run_with_an_unknown_start_is_refused_without_a_folder(didi, tmp_path):
    words = ["distill", "exact", "--start", "nobody", "--max-steps", "1", "--out"]
    status, _, error = didi(*words, tmp_path / "new")
    assert (status, "got 'nobody'" in error, (tmp_path / "new").exists()) == (2, True, False)
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "notes.txt").touch()
    assert didi(*words, tmp_path / "old")[0] == 2
    assert (tmp_path / "old" / "notes.txt").is_file()
