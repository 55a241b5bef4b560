"""The report's plots, each a function from figures to one SVG element."""

from __future__ import annotations

from bench.report.plots.bars import NUM_COLOURS, Part, plot_stacks
from bench.report.plots.changes import Change, plot_changes, plot_shifts, plot_turns
from bench.report.plots.distribution import Series, plot_ecdf, plot_histogram, plot_percentiles
from bench.report.plots.language import plot_divergence, plot_windows, short_nats
from bench.report.plots.learning import plot_learning
from bench.report.plots.targets import Spot, plot_tradeoff
from bench.report.plots.timeline import Second, plot_timeline
from bench.report.plots.verdict import plot_verdict

__all__ = [
    "NUM_COLOURS",
    "Change",
    "Part",
    "Second",
    "Series",
    "Spot",
    "plot_changes",
    "plot_divergence",
    "plot_ecdf",
    "plot_histogram",
    "plot_learning",
    "plot_percentiles",
    "plot_shifts",
    "plot_stacks",
    "plot_timeline",
    "plot_tradeoff",
    "plot_turns",
    "plot_verdict",
    "plot_windows",
    "short_nats",
]
