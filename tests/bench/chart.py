"""The results as a picture: bars of the medians with whiskers from the worst to the best run; plain SVG."""

from __future__ import annotations

from html import escape

from tests.bench.report import OURS, SCENARIOS, Cell, Figures, Results, figures

_WIDTH, _LABEL, _BAR, _GAP, _HEAD = 460, 110, 18, 6, 44


def chart(results: Results) -> str:
    """A panel per version and scenario: scenarios from left to right, versions from top to bottom."""
    versions = list(dict.fromkeys(cell.version for cell in results))
    panels, width, top = [], 0, 20
    for version in versions:
        tallest = 0
        for column, scenario in enumerate(SCENARIOS):
            cells = [cell for cell in results if (cell.version, cell.scenario) == (version, scenario)]
            if cells:
                left = 20 + column * (_WIDTH + 30)
                panels.append(f'<g transform="translate({left},{top})">{_panel(version, scenario, cells, results)}</g>')
                tallest = max(tallest, _HEAD + len(cells) * (_BAR + _GAP))
                width = max(width, left + _WIDTH + 20)
        top += tallest + 30
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def _panel(version: str, scenario: str, cells: list[Cell], results: Results) -> str:
    concurrency = SCENARIOS[scenario]
    title = f"{version}: small GETs, {concurrency} at once, requests/s" if concurrency else f"{version}: 10 MB, MB/s"
    found = {cell: figures(cell, results) for cell in cells}
    most = max((each.rate * (1 + each.spread) for each in found.values() if each), default=1.0)
    rows = [_bar(number, cell.client, each, most) for number, (cell, each) in enumerate(found.items())]
    return f'<text y="16" font-weight="bold">{escape(title)}</text>{"".join(rows)}'


def _bar(number: int, name: str, figure: Figures | None, most: float) -> str:
    y = _HEAD - 14 + number * (_BAR + _GAP)
    middle = y + _BAR / 2
    label = f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
    if figure is None:
        return f'{label}<text x="{_LABEL}" y="{middle + 4}" fill="#a33">failed</text>'
    scale = (_WIDTH - _LABEL - 70) / most
    width, low, high = (figure.rate * factor * scale for factor in (1, 1 - figure.spread, 1 + figure.spread))
    colour = "#2a7f62" if name in OURS else "#9aa5b1"
    return (
        f'{label}<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
        f'<path d="M{_LABEL + low:.1f} {middle}H{_LABEL + high:.1f}" stroke="#333"/>'
        f'<text x="{_LABEL + high + 6:.1f}" y="{middle + 4}">{figure.rate:,.0f}</text>'
    )
