"""How a language model's predictions moved: the divergence of all tokens, and the perplexity ratio of each window."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from bench.gates.verdict import show
from bench.report.figures import show_short
from bench.report.svg import WIDTH, Canvas, Frame, LinearScale, LogScale

__all__ = ["plot_divergence", "plot_windows", "short_nats"]

_NUM_BINS = 44
_MAX_WINDOWS = 400
_DECADES = 5.0
_FLOOR = 1e-12
_HEADROOM = 1.3
"""Room above the highest bar, in which two lines of text stand."""


def plot_divergence(kld: NDArray[np.floating], *, mean: float, limit: float | None = None) -> str:
    """Draw how often each divergence occurred, on a logarithmic axis; what is far below is in the first bar.

    Args:
        kld: Of all tokens, in nats.
        mean: Marked by a line.
        limit: Of a gate on the mean.
    """
    values = np.maximum(kld.reshape(-1).astype(np.float64), _FLOOR)
    high = max(float(values.max()), mean, limit or 0.0) * 1.3
    low = max(min(float(np.quantile(values, 0.01)), mean / 3), high / 10**_DECADES, _FLOOR)
    if limit is not None and limit > 0:
        low = max(min(low, limit / 2), _FLOOR)  # the limit stands inside the axis, not at its end
    edges = np.geomspace(low, high, _NUM_BINS + 1)
    shares = np.histogram(np.maximum(values, low), edges)[0] / len(values) * 100
    frame = Frame()
    x = _Decades(low, high, frame.left, frame.right)
    y = LinearScale(0, float(shares.max()) * _HEADROOM, frame.bottom, frame.top, " %", 4)
    said = f"mean {short_nats(mean)}, 99 % below {short_nats(float(np.quantile(values, 0.99)))} nats"
    canvas = Canvas(254, f"Divergence of each token's prediction from the reference's: {said}")
    canvas.axes(x, y, frame, x_title="divergence from the reference, nats", y_title="share of tokens")
    for left, right, share in zip(edges[:-1].tolist(), edges[1:].tolist(), shares.tolist(), strict=True):
        hint = f"{short_nats(left)} to {short_nats(right)} nats: {share:.2f} %"
        canvas.rect(x(left), y(share), x(right) - x(left) - 0.6, frame.bottom - y(share), "k1", hint)
    marked = (mean,) if limit is None else (mean, limit)
    canvas.dots += [(x(one), frame.top + 8 * step) for one in marked for step in range(5)]
    if limit is not None:
        canvas.line(x(limit), frame.top, x(limit), frame.bottom, "limit")
        places = [(x(limit) + 5, frame.top + 28, "start"), (x(limit) - 5, frame.top + 28, "end")]
        canvas.label(f"limit of the mean {short_nats(limit)}", places, "label strong", frame)
    canvas.line(x(mean), frame.top, x(mean), frame.bottom, "series a")
    places = [(x(mean) - 5, frame.top + 12, "end"), (x(mean) + 5, frame.top + 12, "start")]
    canvas.label(f"mean {short_nats(mean)}", places, "label strong a", frame)
    return canvas.to_svg()


class _Decades(LogScale):
    """Whole powers of ten over many of them, written as such where they are small."""

    def ticks(self) -> list[tuple[float, str]]:
        """Each power of ten."""
        exponents = range(int(np.ceil(np.log10(self.low) - 1e-9)), int(np.floor(np.log10(self.high) + 1e-9)) + 1)
        return [(10.0**exponent, short_nats(10.0**exponent)) for exponent in exponents]


def short_nats(value: float) -> str:
    """Write a divergence: tiny ones with a power of ten.

    >>> short_nats(0.0561), short_nats(3.46e-6)
    ('0.0561', '3.46e−6')
    """
    if value == 0 or value >= 1e-3:
        return show_short(value).rstrip("0").rstrip(".") if value < 1 else show_short(value)
    mantissa, exponent = f"{value:.2e}".split("e")
    return f"{mantissa.rstrip('0').rstrip('.')}e−{abs(int(exponent))}"


def plot_windows(
    ratios: NDArray[np.float64],
    *,
    estimate: float,
    interval: tuple[float, float] | None,
    limit: float | None = None,
) -> str:
    """Draw the perplexity ratio of each window of the text, in its order.

    Args:
        ratios: Artifact's perplexity / reference's, of shape [num_windows].
        estimate: Over all windows.
        interval: Of the estimate.
        limit: Of a gate.
    """
    frame = Frame(left=58.0)
    ends = [float(ratios.min()), float(ratios.max()), 1.0, estimate, *(interval or ())]
    ends += [limit] if limit is not None else []
    pad = 0.1 * (max(ends) - min(ends)) or 0.01
    y = LinearScale(min(ends) - pad, max(ends) + pad, frame.bottom, frame.top, "×", 5)
    x = LinearScale(0, len(ratios), frame.left, frame.right)
    canvas = Canvas(254, f"Perplexity over the reference's in {len(ratios)} windows: {show(estimate, digits=4)}×")
    canvas.axes(x, y, frame, x_title="window of the text", y_title="perplexity / reference's")
    canvas.line(frame.left, y(1), frame.right, y(1), "axis")
    if interval is not None:
        canvas.rect(frame.left, y(interval[1]), frame.right - frame.left, y(interval[0]) - y(interval[1]), "band a")
    canvas.line(frame.left, y(estimate), frame.right, y(estimate), "series a")
    picked = np.unique(np.linspace(0, len(ratios) - 1, min(len(ratios), _MAX_WINDOWS)).astype(int))
    for index in picked.tolist():
        at_x, at_y = x(index + 0.5), y(float(ratios[index]))
        canvas.circle(at_x, at_y, 2.2, "dot a", f"window {index + 1}: {show(float(ratios[index]), digits=4)}×")
        canvas.dots.append((at_x, at_y))
    if limit is not None:
        canvas.line(frame.left, y(limit), frame.right, y(limit), "limit")
        spots = [(frame.left + 4, y(limit) - 5, "start"), (frame.left + 4, y(limit) + 15, "start")]
        canvas.label(f"limit {limit:g}×", spots, "label strong", frame)
    spots = [(WIDTH - 16, y(estimate) - 6, "end"), (WIDTH - 16, y(estimate) + 15, "end")]
    canvas.label(f"{show(estimate, digits=4)}×", spots, "label strong a", frame)
    return canvas.to_svg()
