"""Every report in docs/reported-problems.md names tests that exist and run, and the page shows what the files say."""

import reports


def test_every_report_names_a_test_that_is_run():
    rows = reports.reports()
    assert all(row.tests for row in rows)
    assert reports.missing_tests(rows) == []
    assert {row.report for row in rows} == {*range(1, 33)}


def test_the_page_shows_the_reports():
    assert "\n".join(reports.table(reports.reports())) in (reports.DOCS / "reported-problems.md").read_text()


def test_a_test_that_does_not_exist_is_listed_as_missing():
    here = "tests/benchmarks/test_reports.py"
    row = reports.Report(1, "", "", "", [f"{here}::test_the_page_shows_the_reports", f"{here}::test_gone"])
    assert reports.missing_tests([row]) == [f"{here}::test_gone"]
