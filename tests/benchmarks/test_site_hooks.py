"""The start page of the site, and intervals in cells of tables."""

from types import SimpleNamespace

import site_hooks


def test_intervals_in_cells_are_marked():
    html = '<p>0.80 [0.75, 0.86]</p><td style="x">0.80 [0.75, 0.86]</td><td>[a](b) -1 [-1,200, 3.5]</td>'
    mark = '<span class="interval">{}</span>'.format
    assert site_hooks.on_page_content(html, page=None) == (
        f'<p>0.80 [0.75, 0.86]</p><td style="x">0.80 {mark("[0.75, 0.86]")}</td>'
        f"<td>[a](b) -1 {mark('[-1,200, 3.5]')}</td>"
    )


def test_the_start_page_is_the_readme_with_links_from_docs(monkeypatch, tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "![Text](docs/a.gif), [page](docs/b.md#c), [licence](LICENSE), [rules](CONTRIBUTING.md), [site](https://example.org)"
    )
    monkeypatch.setattr(site_hooks, "README", readme)
    text = "![Text](a.gif), [page](b.md#c), licence (`LICENSE`), [rules](contributing.md), [site](https://example.org)"
    pages = {name: SimpleNamespace(file=SimpleNamespace(src_uri=name)) for name in ("index.md", "api/index.md")}
    assert site_hooks.on_page_markdown("", page=pages["index.md"]) == text
    assert site_hooks.on_page_markdown("[own](LICENSE)", page=pages["api/index.md"]) == "[own](LICENSE)"
