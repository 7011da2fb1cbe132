"""The command ``didi``: refusals, help, ``doctor``, ``bench``, and runs and samples of a small model."""

import json
import os
import re
import signal
import subprocess
import sys
import time

import pytest
import torch
import yaml
from safetensors.torch import load_file

from didi.apps.cli import COMMANDS
from didi.apps.doctor import _variants
from didi.apps.reproduce.command import TARGETS
from didi.data.assets import ASSETS
from didi.models.bundle import load
from didi.recipes import DISTILL, PRETRAIN
from didi.sampling.prompt import canvas_from_prompt

SMALL = ["--data.length", "32", "--loop.batch-size", "4", "--loop.validation-sequences", "8"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["distil", "markov"], "did you mean 'distill'?"),
        (["frobnicate"], f"a command is one of {', '.join(COMMANDS)}; got 'frobnicate'\n"),
        (["distill", "markv", "--out", "x"], "did you mean 'markov'?"),
        (["distill", "--out", "x"], "the recipe comes first"),
        (["distill", "markov"], "didi distill needs --out RUN"),
        (["distill", "markov", "--out", "x", "--objective.divergnce-weight", "3"], "--objective.divergence-weight?"),
        (["distill", "markov", "--out", "x", "--seed", "a"], "--seed"),
        (["distill", "markov", "--out", "x", "--max-steps", "0"], "--max-steps is 1 or more; got 0"),
        (
            ["distill", "markov", "--out", "x", "--preset", "papr"],
            "released, two-moves; got 'papr'; did you mean 'paper'?",
        ),
        (["distill", "markov", "--out", "x", "--method", "sdt"], "dimo, mmd; got 'sdt'; did you mean 'sdtt'?"),
        (["distill", "markov", "--out", "x", "--config", "none.yaml"], "none.yaml is not readable"),
        (["distill", "markov", "--out", "x", "--device", "cuda:99"], "--device is cpu, cuda or cuda:N"),
        (["distill", "markov", "--out", "x", "--teacher", "nobody"], "got 'nobody'"),
        (["distill", "owt-169m", "--out", "x"], "needs a teacher"),
        (["pretrain", "markov", "--out", "x", "--preset", "paper"], "--preset is for distill"),
        (["distill", "markov", "--out", "x", "--loop.log-every", "0"], "didi: log_every is 1 or more; got 0"),
        (["distill", "markov", "--out", "x", "--loop.accumulation", "0"], "accumulation is 1 or more; got 0"),
        (["distill", "markov", "--out", "x", "--student-optimizer.beta1", "1.5"], "beta1 lies in [0, 1); got 1.5"),
        (["distill", "markov", "--out", "x", "--discriminator.label-smoothing", "1"], "label_smoothing lies in [0, 1)"),
        (
            ["distill", "markov", "--out", "x", "--discriminator.warmup-steps", "-5"],
            "warmup_steps is 0 or more; got -5",
        ),
        (
            ["distill", "markov", "--out", "x", "--discriminator.real-source", "foo"],
            "discriminator.real_source is corpus, teacher-pool or teacher-steps=K with K >= 1; got 'foo'",
        ),
        (["pretrain", "markov", "--out", "x", "--network.num-heads", "0"], "num_heads is 1 or more; got 0"),
        (["generate", "--model", "markov", "--temperature", "nan"], "temperature lies in [0, 1e+30]; got nan"),
        (["generate", "--model", "markov", "--temperature", "-1"], "temperature lies in [0, 1e+30]; got -1.0"),
        (
            ["generate", "--model", "markov", "--entropy-bound", "inf"],
            "entropy_bound is a finite number and is 0 or more; got inf",
        ),
        (["generate", "--model", "markov", "--top-p", "0"], "top_p lies in (0, 1]; got 0.0"),
        (["generate", "--model", "markov", "--times", "1", "0.5"], "times fall from 1 to 0"),
        (
            ["generate", "--model", "markov", "--sampler", "entropy-bounded", "--entropy-bound", "-1"],
            "entropy_bound is 0 or more",
        ),
        (["generate", "--model", "markov", "--remask.eta", "2"], "eta lies in [0, 1]; got 2.0"),
        (
            ["evaluate", "--model", "markov", "--anchors", "--out", "x"],
            "anchors are made of a corpus; name one with --data",
        ),
        (
            ["likelihood", "--model", "markov", "--num-draws", "0"],
            "--num-draws is 1 or more; got 0",
        ),
        (["compare", "a"], "didi compare takes two folders or more"),
        (["compare", "a", "a"], "the folders of didi compare differ from each other; got a twice"),
        (["compare", "a", "b", "c/../a"], "the folders of didi compare differ from each other; got a twice"),
        (["compare", "a", "b"], "a was not written by didi evaluate (a/metrics.json: No such file or directory)"),
        (["likelihood", "--model", "markov", "--role", "autoregressive"], "has no autoregressive"),
        (["bench", "--model", "markov", "--rounds", "0"], "--rounds is 1 or more; got 0"),
        (["bench", "--model", "markov", "--nfe", "4", "0"], "--nfe is 1 or more; got 0"),
        (["bench", "--model", "markov", "--methods"], "--methods is one value or more; got none: give one"),
        (["bench", "--model", "owt-170m"], "got 'owt-170m'"),
        (
            ["bench", "--model", "markov", "--methods", "ancestral", "trunk", "--guidance.num-candidates", "3"],
            "--guidance.num-candidates is read by the method guided; --methods has ancestral, trunk: add guided, or",
        ),
        (["doctor"], "the recipe comes first: didi doctor RECIPE"),
        (["doctor", "owt-424"], "did you mean 'owt-424m'?"),
        (
            ["doctor", "markov", "--device", "h1000"],
            "--device is one of h100, h200, a100, l40s, rtx4090, this; got 'h1000'; did you mean 'h100'?",
        ),
        (["doctor", "markov", "--num-processes", "0"], "--num-processes is 1 or more; got 0"),
        (["doctor", "markov", "--utilisation", "0"], "--utilisation lies in (0, 1]; got 0.0"),
        (["doctor", "markov", "--num-processes", "7"], "a multiple of their number; got 128 and 7 processes"),
        (["bench", "--model", "nothing", "--random"], "a recipe of a teacher is one of"),
        (["bench", "--model", "markov", "--length", "99"], "length lies in [1, 32]"),
        (
            ["generate", "--model", "markov", "--prefix", "s1 [MASK]"],
            "a prefix has no [MASK]; got 's1 [MASK]': use infill (--infill)",
        ),
        (["generate", "--model", "markov", "--infill", "s1"], "got 's1': add one, or use prefix (--prefix)"),
        (
            ["generate", "--model", "markov", "--infill", ""],
            "an infill text has a [MASK] for each token to fill in; go",
        ),
        (["generate"], "didi generate needs --model STR"),
        (["generate", "tiny-news"], "has no option tiny-news; give a model with --model tiny-news; see didi generate"),
        (["evaluate", "tiny-news", "--out", "x"], "no option tiny-news; give a model with --model tiny-news; see didi"),
        (["generate", "--model", "markov", "other"], "didi generate has no option other; see didi generate --help"),
        (["generate", "--model=markov", "other"], "didi generate has no option other; see didi generate --help"),
        (["generate", "--foo"], "didi generate has no option --foo; see didi generate --help"),
        (
            ["generate", "--model", "markov", "--length"],
            "--length is one value or more; got none: give one, or leave --length out",
        ),
        (
            ["generate", "--model", "markov", "--times", "--seed", "1"],
            "--times is one value or more; got none: give one",
        ),
        (
            ["evaluate", "--model", "markov", "--out", "x", "--judge"],
            "--judge is one value or more; got none: give one",
        ),
        (
            ["likelihood", "--model", "markov", "--data"],
            "--data is one value or more; got none: give one, or leave --data out",
        ),
        (["serve", "exact", "--cors-origins"], "--cors-origins is one value or more; got none: give one"),
        (["likelihood", "--model", "markov", "--data", "wikitex"], "got 'wikitex'; did you mean 'wikitext'?"),
        (["likelihood", "--model", "markov", "--data", "zzz"], "is one of ptb, wikitext, lm1b, lambada, ag-news, pubm"),
        (
            ["generate", "--model", "markov", "--proteins", "none.fasta", "--keep", "1"],
            "none.fasta is not readable: No such file or directory\n",
        ),
        *(
            (
                ["generate", "--model", "markov", "--baseline", "exact", *words],
                "--baseline is for --race; got 'exact' without --race: add it, or leave --baseline out",
            )
            for words in ([], ["--num-samples", "2"], ["--format", "fasta"], ["--html", "x"], ["--prompts", "none.txt"])
        ),
        (
            ["reproduce", "table1"],
            "didi reproduce needs --scale {markov,exact,tiny,paper,proteins} and --out PATH; see",
        ),
        (["generate", "--model", "markov", "--sampler", "best"], "a sampler is one of ancestral,"),
        (["generate", "--model", "markov", "--sampler", "guided"], "needs a discriminator"),
        (["generate", "--model", "markov", "--nfe", "0"], "nfe lies in [1, 65536]; got 0"),
        (["generate", "--model", "markov", "--role", "student"], "has no student"),
        (["evaluate", "--model", "markov", "--out", "x", "--nfe", "0"], "nfe"),
        (["evaluate", "--model", "markov", "--out", "x", "--sampler", "guided"], "needs a discriminator"),
        (["generate", "--model", "markov", "--prefix", "hello"], "a prompt is made of this tokenizer's words"),
        (["assets", "fetch", "newz"], "did you mean 'news'?"),
        (["assets", "steal"], "didi assets is list"),
        (["assets"], "didi assets is list, fetch NAME... or verify [NAME...]; see didi assets --help"),
        (
            ["convert"],
            "didi convert takes mdlm, duo, sdtt, sedd, didi, gpt2, esm2, dplm, antiberty or export first; "
            "see didi convert --help",
        ),
    ],
)
def test_wrong_use_is_reported_in_one_line_with_status_2(didi, words, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, out, err = didi(*words)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
    assert err.startswith("didi: ")
    assert not {"─", "│"} & set(err)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "line",
    [
        "generate --model tiny-new",
        "serve news=tiny-new",
        "evaluate --model tiny-new --out x",
        "distill markov --teacher tiny-new --out x",
        "likelihood --model tiny-new",
        "bench --model tiny-new",
        "convert export tiny-new --out x",
        "reproduce table1 --scale paper --teacher tiny-new --out x",
    ],
)
def test_a_misspelt_bundle_has_a_suggestion(didi, line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status, _, err = didi(*line.split())
    assert status == 2
    assert "; got 'tiny-new'; did you mean 'tiny-news'?" in err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--foo"], "didi generate has no option --foo; see didi generate --help"),
        (
            ["--num-sample", "1"],
            "didi generate has no option --num-sample; did you mean --num-samples? See didi generate",
        ),
        (["--role", "best"], "didi: --role is one of student, teacher, autoregressive; got 'best'\n"),
        (["--role", "studnt"], "got 'studnt'; did you mean 'student'?\n"),
        (["--times", "1", "x"], "didi: --times does not take the values '1', 'x'; see didi generate --help\n"),
        (["--nfe", "x"], "didi: --nfe is an integer; got 'x'\n"),
        (["--temperature", "hot"], "didi: --temperature is a number; got 'hot'\n"),
    ],
)
def test_errors_of_the_argument_parser_state_the_rule_and_the_value(didi, words, message):
    err = didi("generate", "--model", "markov", *words)[2]
    assert message in err
    assert ".;" not in err


@pytest.mark.slow
def test_a_folder_that_cannot_be_made_is_reported_in_one_line_with_status_2(didi, tmp_path):
    (tmp_path / "file").write_text("")
    for words in (["pretrain", "markov", "--out"], ["evaluate", "--model", "markov", "--judge", "markov", "--out"]):
        status, _, err = didi(*words, tmp_path / "file" / "run")
        assert status == 2
        assert err.startswith("didi: ")
        assert err.count("\n") == 1
        assert str(tmp_path / "file") in err


def doctor_rows(out):
    """The last eight words of each row of the table of ``didi doctor``, by the way to train that the row is about."""
    lines = [line.split() for line in out.splitlines() if line.startswith((" pretrain", " distill"))]
    return {" ".join(words[:-8]): words[-8:] for words in lines if words[-2] in ("yes", "no")}


SHORT_STEPS = ["--objective.moves", "1", "--discriminator.guidance-steps", "0"]  # dry runs with few operations


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")  # dry runs call millions of functions
def test_doctor_has_a_row_for_each_way_to_train_and_takes_the_flags_of_distill(didi):
    status, out, err = didi("doctor", "markov", "--device", "rtx4090", "--num-processes", "2", *SHORT_STEPS)
    assert status == 0
    assert "markov on 2 x RTX4090" in out
    rows = doctor_rows(out)
    assert err.splitlines() == [f"dry run: {name}" for name in rows]
    assert list(rows) == ["pretrain", "pretrain, fsdp", "distill", "distill, fsdp", "distill, lora 16"]
    smaller = doctor_rows(didi("doctor", "markov", "--loop.batch-size", "4", "--lora-rank", "2", *SHORT_STEPS)[1])
    assert list(smaller) == ["pretrain", "distill", "distill, lora 2"]
    peaks = [float(table["distill"][5].replace("<", "")) for table in (rows, smaller)]
    assert peaks[0] > 2 * peaks[1] > 0


@pytest.mark.slow
@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("recipe", "method"), [("markov-udlm", "elbo"), ("markov-duo", "duo")])
def test_doctor_takes_the_methods_of_pre_training(didi, recipe, method):
    status, out, _ = didi("doctor", recipe, "--method", method)
    assert status == 0
    assert list(doctor_rows(out)) == ["pretrain"]


def test_doctor_leaves_out_fsdp_where_the_optimizer_does_not_support_it():
    names = [name for name, _ in _variants(DISTILL["tiny-news"], num_processes=2)]
    assert names == ["pretrain", "distill", "distill, fsdp", "distill, lora 16"]  # FSDP does not support Muon


@pytest.mark.parametrize("words", [[], ["--help"], ["generate", "-h"], *([name, "--help"] for name in COMMANDS)])
def test_help_has_status_0(didi, words):
    status, out, err = didi(*words)
    assert (status, err) == (0, "")
    assert "didi" in out


@pytest.mark.parametrize(
    ("words", "names"),
    [
        (["assets"], list(ASSETS)),
        (["pretrain"], list(PRETRAIN)),
        (["distill"], list(DISTILL)),
        (["doctor"], list(DISTILL)),
        (["reproduce"], [*TARGETS, "all"]),
    ],
    ids=lambda words: words[0],
)
def test_help_lists_the_choices_of_the_first_argument(didi, words, names):
    out = re.sub(r"[\s│]+", " ", didi(*words, "--help")[1])
    assert f"is one of {', '.join(names[:-1])}" in out.replace(" or all", ", all")


@pytest.mark.parametrize("name", ["generate", "evaluate", "distill", "reproduce", "convert"])
def test_help_shows_no_none_as_type_or_default(didi, name):
    out = didi(name, "--help")[1]
    assert "{None}" not in out
    assert "default: None" not in out
    assert " STR " in out


def test_help_is_not_wrapped_at_the_line_breaks_of_the_source(didi, monkeypatch):
    monkeypatch.setenv("COLUMNS", "400")
    out = didi("generate", "--help")[1]
    assert "A step takes at most one network pass, with reparam at most two. (default: unset)" in out
    assert "several numbers are used in turn. By default the length of the model's context. (default: unset)" in out
    assert "(default: )" not in out


@pytest.mark.slow
def test_none_unsets_what_a_recipe_sets_and_nothing_else(didi, tmp_path):
    words = ["distill", "markov", "--out", tmp_path / "x", "--max-steps", "0"]
    assert "--max-steps is 1" in didi(*words, "--data.tokenizer", "None")[2]
    assert "got 'None'" in didi("generate", "--model", "None")[2]
    assert (
        "--role is one of student, teacher, autoregressive; got 'None'"
        in didi("generate", "--model", "markov", "--role", "None")[2]
    )


@pytest.mark.parametrize("words", [["foo"], ["distill", "zzz"], ["assets", "fetch", "qqq"], ["doctor", "zzz"]])
def test_unrelated_words_get_no_suggestion(didi, words):
    status, _, err = didi(*words)
    assert (status, err.count("\n")) == (2, 1)
    assert "did you mean" not in err


@pytest.mark.slow
def test_a_run_writes_config_metrics_checkpoints_and_bundle(distilled):
    config = yaml.safe_load((distilled / "config.yaml").read_text())
    assert config["recipe"] == "markov"
    assert config["loop"]["steps"] == config["discriminator"]["warmup_steps"] == 3
    lines = [json.loads(line) for line in (distilled / "metrics.jsonl").read_text().splitlines()]
    names = {"reward", "reward_std", "clamp_fraction", "entropy", "discriminator_accuracy", "tokens_per_second"}
    assert names | {"student_gradient_norm", "discriminator_gradient_norm"} <= set(lines[0])
    assert "validation_nelbo" in lines[-1]
    assert list((distilled / "checkpoints").iterdir())
    bundle = load(distilled / "bundle")
    assert bundle.provenance["seed"] == 0
    assert None not in (bundle.student, bundle.teacher, bundle.discriminator, bundle.tokenizer)


@pytest.mark.slow
def test_config_yaml_of_a_run_repeats_it_with_equal_weights(didi, distilled, tmp_path):
    status, out, _ = didi("distill", "--config", distilled / "config.yaml", "--out", tmp_path / "b")
    assert status == 0
    assert out.strip() == str(tmp_path / "b" / "bundle")
    assert (tmp_path / "b" / "config.yaml").read_text() == (distilled / "config.yaml").read_text()
    weights = [load_file(path / "bundle/student/model.safetensors") for path in (distilled, tmp_path / "b")]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])


def test_a_preset_together_with_a_config_file_is_refused(didi, distilled, tmp_path):
    words = ["distill", "--config", distilled / "config.yaml", "--preset", "paper", "--out", tmp_path / "x"]
    status, _, err = didi(*words)
    assert status == 2
    assert "give one of them" in err


@pytest.mark.slow
def test_a_mask_in_an_infill_text_is_one_token():
    bundle = load("tiny-news")
    canvas = canvas_from_prompt(bundle, 16, prefix=None, infill="The [MASK] minister")
    expected = [*bundle.tokenizer.encode("The").ids, bundle.student.mask_id, *bundle.tokenizer.encode(" minister").ids]
    assert canvas.tokens[0, : len(expected)].tolist() == expected
    is_mask = torch.tensor(expected) == bundle.student.mask_id
    assert torch.equal(canvas.is_free[0, : len(expected)], is_mask)
    assert canvas.is_free[0, len(expected) :].all()


@pytest.mark.slow
def test_flags_override_a_config_file_and_a_config_file_overrides_the_recipe(didi, tmp_path):
    part = tmp_path / "part.yaml"
    part.write_text("seed: 5\nloop: {batch_size: 4, validation_sequences: 8}\nobjective: {revealed_only: false}\n")
    words = ["pretrain", "markov"]
    status, _, err = didi(*words, "--config", part, "--out", tmp_path / "x")
    assert status == 2  # a pre-training has no objective
    assert "objective" in err
    words = ["distill", "markov", "--config", part, "--seed", "6", "--max-steps", "1", "--out", tmp_path / "y"]
    assert didi(*words)[0] == 0
    config = yaml.safe_load((tmp_path / "y" / "config.yaml").read_text())
    assert (config["seed"], config["loop"]["batch_size"], config["objective"]["revealed_only"]) == (6, 4, False)


@pytest.mark.slow
def test_a_run_is_neither_replaced_nor_resumed_with_other_settings(didi, distilled):
    before = (distilled / "config.yaml").read_text()
    assert "holds a run" in didi("distill", "markov", "--out", distilled)[2]
    status, _, err = didi("distill", "markov", "--out", distilled, "--resume", "--seed", "9")
    assert status == 2
    assert "seed was 0 and is 9" in err
    assert (distilled / "config.yaml").read_text() == before


@pytest.mark.slow
def test_generate_writes_a_json_record_for_each_sample(didi, distilled):
    bundle = distilled / "bundle"
    words = ["generate", "--model", bundle, "--num-samples", "3", "--nfe", "4", "--seed", "7", "--format", "jsonl"]
    status, out, _ = didi(*words)
    records = [json.loads(line) for line in out.splitlines()]
    assert status == 0
    assert len(records) == 3
    for record in records:
        assert {"text", "tokens", "nfe", "discriminator_passes", "seed"} <= set(record)
        assert (record["nfe"], record["seed"], record["discriminator_passes"]) == (4, 7, 0)
        assert record["text"].split() == [f"s{token}" for token in record["tokens"]]
    other = didi(*words, "--batch-size", "1")[1]
    assert other == out.replace('"batch_size": 32', '"batch_size": 1') != out
    guided = didi(*words, "--sampler", "guided")[1]
    assert all(json.loads(line)["discriminator_passes"] > 0 for line in guided.splitlines())


SAMPLERS = ["ancestral", "guided", "first-hitting", "tau-leaping", "confidence", "entropy-bounded", "remasking"]


@pytest.mark.slow
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_generate_keeps_prefix_and_fills_masks(didi, distilled, sampler):
    words = ["generate", "--model", distilled / "bundle", "--num-samples", "2", "--format", "jsonl"]
    words += ["--sampler", sampler, "--grid", "cosine", "--top-p", "0.9", "--nfe", "6"]
    for line in didi(*words, "--prefix", "s4 s5")[1].splitlines():
        assert json.loads(line)["tokens"][:2] == [4, 5]
    for line in didi(*words, "--infill", "s1 [MASK] s3")[1].splitlines():
        tokens = json.loads(line)["tokens"]
        assert (tokens[0], tokens[2]) == (1, 3)


def test_given_times_set_the_number_of_moves(didi, distilled):
    words = ["generate", "--model", distilled / "bundle", "--num-samples", "1", "--format", "jsonl"]
    (line,) = didi(*words, "--times", "1", "0.4", "0")[1].splitlines()
    assert json.loads(line)["nfe"] == 2


@pytest.mark.slow
def test_the_live_view_does_not_change_standard_output(didi, distilled, monkeypatch):
    monkeypatch.setattr("didi.apps.live.PAUSE", 0)
    words = ["generate", "--model", distilled / "bundle", "--num-samples", "2", "--nfe", "4", "--format", "jsonl"]
    plain, live = didi(*words), didi(*words, "--live")
    assert plain[1] == live[1]
    assert "move 4, t = 0.00" in live[2]


@pytest.mark.slow
def test_bench_prints_a_table_and_writes_it_to_files(didi, tmp_path):
    words = ["bench", "--model", "markov", "--batch-size", "2", "--nfe", "2", "4", "--rounds", "2", "--no-memory"]
    status, out, _ = didi(*words, "--methods", "ancestral", "autoregressive", "--random", "--out", tmp_path / "b")
    assert status == 0
    record = json.loads((tmp_path / "b" / "bench.json").read_text())
    assert record["model"] == "random markov"
    records = record["rows"]
    assert [(row["method"], row["nfe"]) for row in records] == [
        ("ancestral", 2), ("autoregressive", 32), ("trunk", 2), ("ancestral", 4), ("autoregressive", 32), ("trunk", 4),
    ]  # fmt: skip
    assert all(len(row["seconds"]) == 2 for row in records)
    assert {row["variant"] for row in records} == {"float32"}
    assert records[0]["over_floor"][0] > 0
    assert records[2]["over_floor"] is None
    assert out.startswith((tmp_path / "b" / "bench.md").read_text())


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(tmp_path):
    words = ["distill", "markov", "--max-steps", "60", "--seed", "3", "--loop.checkpoint-every", "7", *SMALL]

    def start(out, *more):
        command = [sys.executable, "-m", "didi", *words, "--out", str(tmp_path / out), *more]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=environment)

    def finish(process):
        assert process.wait() == 0, process.stderr.read().decode()
        process.stderr.close()

    finish(start("uninterrupted"))
    killed = start("killed")
    while len(list((tmp_path / "killed").glob("checkpoints/step-*"))) < 2:  # until training has begun
        time.sleep(0.02)
        assert killed.poll() is None
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    killed.stderr.close()
    assert not (tmp_path / "killed/bundle").exists()
    finish(start("killed", "--resume"))
    files = [tmp_path / name / "bundle/student/model.safetensors" for name in ("uninterrupted", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    metrics = [(tmp_path / name / "metrics.jsonl").read_text().splitlines() for name in ("uninterrupted", "killed")]
    steps = [[json.loads(line)["step"] for line in lines] for lines in metrics]
    assert steps[0] == steps[1]
