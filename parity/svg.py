"""Three small charts as inline SVG: lines, bars and points. No script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

COLORS = ("#1f6feb", "#d1242f", "#8250df", "#57606a", "#9a6700", "#1a7f37")

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40


class _Frame:
    """Axes from `x_range` and `y_range` to a drawing."""

    def __init__(
        self, x_range: tuple[float, float], y_range: tuple[float, float], x_name: str, y_name: str
    ) -> None:
        self._x, self._y = _wide(x_range), _wide(y_range)
        self._names = x_name, y_name
        self.marks: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where `(x, y)` lies."""
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 2),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 2),
        )

    def drawn(self, names: Sequence[str], colors: Sequence[str]) -> str:
        """Return the chart with its axes and a legend."""
        parts = [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(self._names[1])} by {escape(self._names[0])}">'
        ]
        for x in _ticks(*self._x):
            across, base = self.at(x, self._y[0])
            parts.append(f'<path class="grid" d="M{across} {_TOP}V{base}"/>')
            parts.append(f'<text x="{across}" y="{base + 14}" class="mid">{_short(x)}</text>')
        for y in _ticks(*self._y):
            left, up = self.at(self._x[0], y)
            parts.append(f'<path class="grid" d="M{left} {up}H{_WIDTH - _RIGHT}"/>')
            parts.append(f'<text x="{left - 6}" y="{up + 4}" class="end">{_short(y)}</text>')
        parts += self.marks
        parts.append(
            f'<text x="{_WIDTH / 2}" y="{_HEIGHT - 6}" class="mid">{escape(self._names[0])}</text>'
            f'<text class="mid" transform="translate(12 {_HEIGHT / 2}) rotate(-90)">'
            f"{escape(self._names[1])}</text></svg>"
        )
        legend = "".join(
            f'<span><i style="background:{color}"></i>{escape(name)}</span>'
            for name, color in zip(names, colors, strict=False)
        )
        return "".join(parts) + f'<p class="legend">{legend}</p>'


def lines(
    x: Sequence[float], series: Mapping[str, Sequence[float | None]], *, x_name: str, y_name: str
) -> str:
    """Return a chart of one line for each entry of `series`; None leaves a gap."""
    values = [value for ys in series.values() for value in ys if value is not None]
    frame = _Frame((min(x), max(x)), (0.0, max(values, default=0.0)), x_name, y_name)
    for ys, color in zip(series.values(), _colors(series), strict=False):
        pen, path = "M", []
        for across, value in zip(x, ys, strict=True):
            if value is None or math.isnan(value):
                pen = "M"
                continue
            path.append("{}{} {}".format(pen, *frame.at(across, value)))
            pen = "L"
        frame.marks.append(f'<path class="line" stroke="{color}" d="{"".join(path)}"/>')
    return frame.drawn(list(series), _colors(series))


def points(series: Mapping[str, Sequence[Sequence[float]]], *, x_name: str, y_name: str) -> str:
    """Return a scatter of `[x, y]` pairs on equal axes, with the diagonal."""
    values = [value for pairs in series.values() for pair in pairs for value in pair]
    span = (min(values, default=0.0), max(values, default=1.0))
    frame = _Frame(span, span, x_name, y_name)
    (x0, y0), (x1, y1) = frame.at(span[0], span[0]), frame.at(span[1], span[1])
    frame.marks.append(f'<path class="grid" stroke-dasharray="4" d="M{x0} {y0}L{x1} {y1}"/>')
    for pairs, color in zip(series.values(), _colors(series), strict=False):
        dots = "".join(
            '<circle cx="{}" cy="{}" r="1.6"/>'.format(*frame.at(*pair)) for pair in pairs
        )
        frame.marks.append(f'<g fill="{color}" fill-opacity="0.45">{dots}</g>')
    return frame.drawn(list(series), _colors(series))


def _colors(series: Mapping[str, object]) -> list[str]:
    return [COLORS[index % len(COLORS)] for index in range(len(series))]


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high > low else (low, low + 1.0)


def _ticks(low: float, high: float) -> list[float]:
    """Return four to nine round numbers between the ends."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 8)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}"
