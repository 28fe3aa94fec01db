"""Two small charts as inline SVG: lines and points. No script, no font, no network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

COLORS = ("#1f6feb", "#d1242f", "#8250df", "#57606a", "#9a6700", "#1a7f37")

_WIDTH, _HEIGHT = 640, 280
_LEFT, _RIGHT, _TOP, _BOTTOM = 64, 12, 12, 40


class _Frame:
    """Axes from `x_range` and `y_range` to a drawing."""

    def __init__(
        self,
        x_range: tuple[float, float],
        y_range: tuple[float, float],
        names: tuple[str, str],
        *,
        whole_x: bool = False,
    ) -> None:
        self._x, self._y = _wide(x_range), _wide(y_range)
        self._names = names
        self._least_step = 1 if whole_x else 0
        self.marks: list[str] = []

    def at(self, x: float, y: float) -> tuple[float, float]:
        """Return where `(x, y)` lies."""
        across = (x - self._x[0]) / (self._x[1] - self._x[0])
        up = (y - self._y[0]) / (self._y[1] - self._y[0])
        return (
            round(_LEFT + across * (_WIDTH - _LEFT - _RIGHT), 2),
            round(_HEIGHT - _BOTTOM - up * (_HEIGHT - _TOP - _BOTTOM), 2),
        )

    def drawn(self) -> str:
        """Return the chart with its axes."""
        parts = [
            f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" '
            f'aria-label="{escape(self._names[1])} by {escape(self._names[0])}">'
        ]
        for x in _ticks(*self._x, self._least_step):
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
        return "".join(parts)


def lines(
    x: Sequence[float],
    series: Mapping[str, Sequence[float | None]],
    *,
    colors: Mapping[str, str],
    x_name: str,
    y_name: str,
    whole_x: bool = False,
) -> str:
    """Return a chart of one line for each entry of `series`; None leaves a gap.

    Args:
        whole_x: `x` counts things: no marks between whole numbers.
    """
    values = [value for ys in series.values() for value in ys if value is not None]
    names = x_name, y_name
    frame = _Frame((min(x), max(x)), (0.0, max(values, default=0.0)), names, whole_x=whole_x)
    for name, ys in series.items():
        pen, path, dots = "M", [], []
        for across, value in zip(x, ys, strict=True):
            if value is None or math.isnan(value):
                pen = "M"
                continue
            place = frame.at(across, value)
            path.append("{}{} {}".format(pen, *place))
            dots.append('<circle cx="{}" cy="{}" r="2.2"/>'.format(*place))
            pen = "L"
        frame.marks.append(
            f'<path class="line" stroke="{colors[name]}" d="{"".join(path)}"/>'
            f'<g fill="{colors[name]}">{"".join(dots)}</g>'
        )
    return frame.drawn() + _legend(series, colors)


def points(
    pairs: Sequence[Sequence[float]],
    *,
    color: str,
    within: tuple[float, float],
    x_name: str,
    y_name: str,
) -> str:
    """Return a scatter of `[x, y]` pairs with the diagonal, both axes from and to `within`."""
    frame = _Frame(within, within, (x_name, y_name))
    (x0, y0), (x1, y1) = frame.at(within[0], within[0]), frame.at(within[1], within[1])
    frame.marks.append(f'<path class="grid" stroke-dasharray="4" d="M{x0} {y0}L{x1} {y1}"/>')
    dots = "".join('<circle cx="{}" cy="{}" r="1.6"/>'.format(*frame.at(*pair)) for pair in pairs)
    frame.marks.append(f'<g fill="{color}" fill-opacity="0.45">{dots}</g>')
    return frame.drawn()


def _legend(names: Iterable[str], colors: Mapping[str, str]) -> str:
    entries = "".join(
        f'<span><i style="background:{colors[name]}"></i>{escape(name)}</span>' for name in names
    )
    return f'<p class="legend">{entries}</p>'


def _wide(span: tuple[float, float]) -> tuple[float, float]:
    low, high = span
    return (low, high) if high > low else (low, low + 1.0)


def _ticks(low: float, high: float, least_step: float = 0) -> list[float]:
    """Return four to nine round numbers between the ends, no closer than `least_step`."""
    step = 10 ** math.floor(math.log10((high - low) / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if (high - low) / (step * factor) <= 8)
    step = max(step, least_step)
    first = math.ceil(low / step - 1e-9)
    return [index * step for index in range(first, math.floor(high / step + 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.3g}"
