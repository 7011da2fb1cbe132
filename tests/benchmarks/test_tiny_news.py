"""``benchmarks/tiny_news.py``: verdicts that hold, fail or are not measured, and the texts that are shown."""

import math

import tiny_news

from didi.evaluation.row import EvaluationRow


def make_rows(*, ppl, entropy=lambda cell: 4.5):
    """A row for each cell; perplexity rises steeply with temperature, entropy a little."""
    rows = {}
    for cell in tiny_news.cells():
        value = ppl(cell) * cell.temperature**5
        nats = entropy(cell) + 0.5 * math.log(cell.temperature)
        rows[cell.name] = EvaluationRow(
            cell.role, cell.sampler, cell.nfe, float(cell.nfe), 20.0, 256, "float64", "judge", value,
            (value * 0.9, value * 1.1), value, nats, (nats - 0.01, nats + 0.01), 6.0, 8.0, 0.99, 0.1, 100.0,
            math.nan, 0, "machine", cell.temperature,
        )  # fmt: skip
    return rows


def good(cell):
    student = 120 if cell.sampler == "guided" else 160
    return {"data": 50, "teacher": 180, "student": student, "autoregressive": 150}.get(cell.role, 500)


def answers(rows):
    return [line.split("|")[4].strip() for line in tiny_news.verdicts(rows) if line.startswith("|")][2:]


def test_every_claim_holds_for_a_better_student_at_equal_entropy():
    assert answers(make_rows(ppl=good)) == ["yes"] * 17


def test_a_lower_perplexity_from_lower_entropy_fails_at_equal_entropy():
    def sharpened(cell):
        return 0.95 if cell.role == "student" else 1.0

    def entropy(cell):  # as if at temperature 0.95
        return 4.5 + 0.5 * math.log(sharpened(cell))

    rows = make_rows(ppl=lambda cell: 200 * sharpened(cell) ** 4.5, entropy=entropy)
    held = answers(rows)
    assert held[1:3] == ["yes", "yes"]  # lower perplexity, entropy above 0.97 of the teacher's
    assert held[3:15] == ["**no**"] * 12


def test_only_texts_of_generated_sets_are_shown():
    rows = make_rows(ppl=good)
    shown = "\n".join(
        tiny_news.showcase(rows, {name: {"texts": [f"text of {row.role}"]} for name, row in rows.items()})
    )
    assert "text of student" in shown
    assert "text of trigram model" in shown
    assert "text of data" not in shown
    assert "text of shuffled words" not in shown


def test_sets_without_a_common_entropy_are_not_compared():
    rows = make_rows(ppl=good, entropy=lambda cell: 3.0 if cell.sampler == "guided" else 4.5)
    assert answers(rows)[15].startswith("**not measured**")
    assert answers(rows)[16].startswith("**not measured**")
    rows = make_rows(ppl=good, entropy=lambda cell: 3.0 if cell.role == "student" else 4.5)
    assert [answer.startswith("**not measured**") for answer in answers(rows)[3:15]] == [True] * 12


def test_the_baseline_is_compared_at_equal_entropy():
    def timing(rows):
        seconds = {"student": 0.1, "teacher": 0.1, "autoregressive": 0.4}
        return {
            cell.name: {str(size): [seconds[cell.role]] * num for size, num in tiny_news.TIMED_ROUNDS.items()}
            for cell in tiny_news.cells()
            if cell.nfe and cell.temperature == 1
        }

    rows = make_rows(ppl=lambda cell: 140 if cell.role == "student" and cell.nfe >= 16 else good(cell))
    (finding,) = tiny_news.against_autoregressive(rows, timing(rows))
    plain, guided = finding.split("\n\n")
    assert "as good from 16 NFE on (perplexity 140 against 150 at entropy 4.50)" in plain
    assert "4.0 [4.0, 4.0] at batch 1" in plain
    assert "as good from 4 NFE on" in guided
    sharp = make_rows(ppl=good, entropy=lambda cell: 4.4 if cell.role == "student" else 4.5)
    (finding,) = tiny_news.against_autoregressive(sharp, timing(sharp))
    assert finding.startswith("**Student, ancestral, compared with the autoregressive baseline:** the student is worse")
