"""Intervals in cells of tables, and only these, are marked."""

from site_tables import on_page_content


def test_intervals_in_cells_are_marked():
    html = '<p>0.80 [0.75, 0.86]</p><td style="x">0.80 [0.75, 0.86]</td><td>[a](b) -1 [-1,200, 3.5]</td>'
    mark = '<span class="interval">{}</span>'.format
    assert on_page_content(html, page=None) == (
        f'<p>0.80 [0.75, 0.86]</p><td style="x">0.80 {mark("[0.75, 0.86]")}</td>'
        f"<td>[a](b) -1 {mark('[-1,200, 3.5]')}</td>"
    )
