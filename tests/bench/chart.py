"""The results as a picture: bars of CPU time with whiskers from the best to the worst run, shorter is better; SVG."""

from __future__ import annotations

from html import escape

from tests.bench.report import NATIVE, OURS, Cell, Figures, Results, figures, scale
from tests.bench.scenarios import ALL_VERSIONS, SCENARIOS

_WIDTH, _LABEL, _BAR, _GAP, _HEAD = 580, 110, 18, 6, 44


def chart(results: Results) -> str:
    """A panel per version and scenario: versions from left to right, scenarios from top to bottom."""
    versions = [version for version in ALL_VERSIONS if any(cell.version == version for cell in results)]
    panels, top = [], 20
    for scenario in SCENARIOS:
        tallest = 0
        for column, version in enumerate(versions):
            cells = [cell for cell in results if (cell.version, cell.scenario) == (version, scenario)]
            if cells:
                left = 20 + column * (_WIDTH + 30)
                panels.append(f'<g transform="translate({left},{top})">{_panel(version, scenario, cells, results)}</g>')
                tallest = max(tallest, _HEAD + len(cells) * (_BAR + _GAP) + 10)
        top += tallest
    width = 20 + len(versions) * (_WIDTH + 30)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{top}" font-family="sans-serif" '
        f'font-size="12"><rect width="100%" height="100%" fill="white"/>{"".join(panels)}</svg>\n'
    )


def _panel(version: str, scenario: str, cells: list[Cell], results: Results) -> str:
    unit, times = scale(scenario)
    title = f"{version}: {SCENARIOS[scenario].title}; {unit} of CPU per {SCENARIOS[scenario].per}"
    found = {cell: figures(cell, results) for cell in cells}
    most = max((each.cpu * (1 + each.cpu_spread) for each in found.values() if each), default=1.0)
    rows = [_bar(number, cell.client, each, most, times) for number, (cell, each) in enumerate(found.items())]
    return f'<text y="16" font-weight="bold">{escape(title)}</text>{"".join(rows)}'


def _bar(number: int, name: str, figure: Figures | None, most: float, times: float) -> str:
    y = _HEAD - 14 + number * (_BAR + _GAP)
    middle = y + _BAR / 2
    label = f'<text x="{_LABEL - 8}" y="{middle + 4}" text-anchor="end">{escape(name)}</text>'
    if figure is None:
        return f'{label}<text x="{_LABEL}" y="{middle + 4}" fill="#a33">failed</text>'
    by = (_WIDTH - _LABEL - 70) / most
    width, low, high = (figure.cpu * factor * by for factor in (1, 1 - figure.cpu_spread, 1 + figure.cpu_spread))
    colour = "#2a7f62" if name in (*OURS, NATIVE) else "#9aa5b1"
    return (
        f'{label}<rect x="{_LABEL}" y="{y}" width="{width:.1f}" height="{_BAR}" fill="{colour}"/>'
        f'<path d="M{_LABEL + low:.1f} {middle}H{_LABEL + high:.1f}" stroke="#333"/>'
        f'<text x="{_LABEL + high + 6:.1f}" y="{middle + 4}">{figure.cpu * times:,.1f}</text>'
    )
