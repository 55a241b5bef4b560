"""How well a language model predicts a text, against its reference token by token, and what it answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.gates.verdict import Rounding, Verdict, show
from bench.report.blocks import Block, Cell, Figure, Noted, Section, Table, Text, keep_filled
from bench.report.data import TargetReport
from bench.report.figures import bound_change, count, show_change, show_points
from bench.report.plots import plot_divergence, plot_windows, short_nats

if TYPE_CHECKING:
    from bench.language.answers import Answers
    from bench.language.evaluation import LanguageEvaluation
    from bench.language.intervals import Estimate

__all__ = ["show_answers", "show_language"]

_NUM_SHOWN = 6
_MAX_TEXT = 240


def show_language(target: TargetReport) -> Section | None:
    """Perplexity, divergence and likeliest tokens, each with its ± and its interval, and the plots."""
    language = target.language
    if language is None:
        return None
    blocks: list[Block] = [Text(_how(language)), *_warnings(language), _figures(language)]
    if language.kld is not None:
        mean = language.mean_kld()
        limit = _limit(target.verdicts, "divergence")
        svg = plot_divergence(language.kld, mean=mean.value, limit=limit)
        blocks.append(Figure(caption="How often each divergence occurred, over all scored tokens.", svg=svg))
        ratio = language.perplexity_ratio()
        interval = None if ratio.lower is None or ratio.upper is None else (ratio.lower, ratio.upper)
        limit = _limit(target.verdicts, "perplexity", unit="ratio")
        svg = plot_windows(language.window_ratios(), estimate=ratio.value, interval=interval, limit=limit)
        band = "; the band is the interval of all." if interval else "; the line is that of all together."
        blocks.append(Figure(caption=f"Perplexity ratio of each window{band}", svg=svg))
    return Section(title="Predictions of a text", level=3, blocks=tuple(blocks))


def _how(language: LanguageEvaluation) -> str:
    text = f"{language.text}: " if language.text else ""
    said = (
        f"{text}{language.num_tokens:,} tokens, the second halves of {count(language.num_windows, 'window')} of "
        f"{language.window_length:,}, as llama.cpp's perplexity tool scores them; {language.engine}"
    )
    if language.has_reference:
        said += f"; held against {language.reference_engine} on the same tokens"
    if language.num_excluded:
        said += f"; {language.num_excluded:,} logits of padding left out"
    below = (
        "± is that tool's standard error for independent tokens; the interval below a figure counts windows, not tokens"
    )
    return f"{said}. {below}."


def _warnings(language: LanguageEvaluation) -> list[Block]:
    from bench.language.intervals import MIN_BOUNDED

    if language.num_windows >= MIN_BOUNDED:
        return []
    said = f"{language.num_windows} windows say too little for an interval: {MIN_BOUNDED} or more are needed."
    return [Text(said, is_warning=True)]


def _figures(language: LanguageEvaluation) -> Table:
    rows: list[tuple[Cell, ...]] = [("perplexity", *_cells(language.perplexity(), digits=3))]
    if language.has_reference:
        rows += _against_reference(language)
    return Table(head=("figure", "value (95 % interval)", "±"), rows=tuple(rows))


def _against_reference(language: LanguageEvaluation) -> list[tuple[Cell, ...]]:
    rows: list[tuple[Cell, ...]] = [
        ("perplexity of the reference", *_cells(language.reference_perplexity(), digits=3)),
        ("perplexity ratio", *_cells(language.perplexity_ratio(), digits=4, unit="×")),
        ("divergence, mean, nats", *_nats(language.mean_kld())),
    ]
    for percentile, name in ((50.0, "median"), (99.0, "p99")):
        rows.append((f"divergence, {name}", *_nats(language.kld_percentile(percentile))))
    assert language.kld is not None
    rows.append(("divergence, largest", short_nats(float(language.kld.max())), "–"))
    rows.append(("same likeliest token", *_cells(language.same_top_rate(), scale=100.0, unit=" %")))
    rows.append(("change of the text's probability, mean", *_points(language.mean_p_diff())))
    rows.append(("change of the text's probability, RMS", *_points(language.rms_p_diff())))
    return rows


def _cells(one: Estimate, *, digits: int = 2, scale: float = 1.0, unit: str = "") -> tuple[Cell, Cell]:
    def shown(value: float, rounding: Rounding = "near") -> str:
        return show(scale * value, digits=digits, rounding=rounding).replace("-", "−")

    value: Cell = f"{shown(one.value)}{unit}"
    if one.lower is not None and one.upper is not None:
        value = Noted(f"{shown(one.value)}{unit}", f"{shown(one.lower, 'down')} to {shown(one.upper, 'up')}")
    return value, "–" if one.error is None else shown(one.error, "up")


def _points(one: Estimate) -> tuple[Cell, Cell]:
    return _cells(one, digits=3, scale=100.0, unit=" points")


def _nats(one: Estimate) -> tuple[Cell, Cell]:
    value: Cell = short_nats(one.value)
    if one.lower is not None and one.upper is not None:
        value = Noted(short_nats(one.value), f"{short_nats(one.lower)} to {short_nats(one.upper)}")
    return value, "–" if one.error is None else short_nats(one.error)


def _limit(verdicts: Sequence[Verdict], gate: str, unit: str = "nats") -> float | None:
    found = (one.threshold for one in verdicts if one.gate.startswith(gate) and one.unit == unit)
    return next(found, None)


def _shorten(text: str) -> str:
    joined = " ".join(text.split())
    return joined if len(joined) <= _MAX_TEXT else f"{joined[:_MAX_TEXT].rsplit(' ', 1)[0]} …"


def show_answers(target: TargetReport) -> Section | None:
    """Metrics of the answers to prompts, against the baseline's on the same prompts, and some answers."""
    answers, baseline = target.answers, target.baseline_answers
    if answers is None:
        return None
    said = (
        f"{count(len(answers.answers), 'prompt')}, answered greedily with up to {count(answers.max_tokens, 'token')} "
        f"by {answers.engine}; the answers are {show(answers.length_ratio)}× as long as the references, and "
        f"{show(100 * answers.share_cut, digits=0)} % of them were cut at the limit."
    )
    rows = [_metric_row(name, answers, baseline) for name in answers.metrics]
    table = keep_filled(("metric", "baseline", "artifact", "change, points (95 % interval)"), rows)
    blocks: list[Block] = [Text(said), *([table] if table else []), _samples(answers, baseline)]
    return Section(title="Answers", level=3, blocks=tuple(blocks))


def _metric_row(name: str, answers: Answers, baseline: Answers | None) -> tuple[Cell | None, ...]:
    value = f"{show(100 * answers.metrics[name])} %"
    if baseline is None:
        return name, None, value, None
    bounds = bound_change(name, answers.evaluation, baseline.evaluation)
    change = show_change(bounds) if bounds else show_points(answers.metrics[name] - baseline.metrics[name])
    return name, f"{show(100 * baseline.metrics[name])} %", value, change


def _samples(answers: Answers, baseline: Answers | None) -> Table:
    """Answers as they were given; those that differ from the baseline's first."""
    same = baseline is not None and baseline.data_digest == answers.data_digest
    theirs = baseline.answers if baseline is not None and same else (None,) * len(answers.answers)
    pairs = sorted(
        zip(answers.answers, theirs, strict=True), key=lambda pair: pair[1] is not None and pair[0].text == pair[1].text
    )
    rows = []
    for ours, other in pairs[:_NUM_SHOWN]:
        said: Cell = _shorten(ours.text) or "(nothing)"
        if other is not None:
            said = Noted(_shorten(ours.text) or "(nothing)", f"baseline: {_shorten(other.text) or '(nothing)'}")
        rows.append((_shorten(ours.prompt), _shorten(ours.references[0]), said))
    caption = "Some answers" + (", those that differ from the baseline's first." if same else ".")
    return Table(head=("prompt", "expected", "answered"), rows=tuple(rows), num_text=3, caption=caption)
