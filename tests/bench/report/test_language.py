from __future__ import annotations

import re
from dataclasses import replace

import numpy as np
import pytest

from bench.gates.judge import Evidence, judge
from bench.gates.verdict import show
from bench.language.answers import Prompt, measure_answers
from bench.language.measure import measure_language
from bench.language.reference import record_reference
from bench.report import ReleaseReport, TargetReport
from bench.report.markdown import to_markdown
from bench.report.page import to_html
from bench.report.plots import plot_divergence, plot_windows, short_nats
from bench.report.svg import Frame
from edgesmith.gates import Gates
from tests.bench.language.engines import KnownEngine, windows
from tests.bench.report.builders import subject


def report(num_windows: int = 12, *, noise: float = 0.3) -> ReleaseReport:
    whole, baseline = subject("q4", 105.0), subject("checkpoint", 270.0)
    language = measure_language(
        KnownEngine(noise=noise),
        record_reference(KnownEngine(), windows(num_windows), artifact_digest=baseline.digest),
        artifact_digest=whole.digest,
        text="<b>moby-dick.txt",
    )
    gates = Gates.model_validate({"perplexity": {"max_ratio": 1.5}, "divergence": {"max_mean_kld": 0.5}})
    verdicts = judge(gates, Evidence(artifact=whole, baseline=baseline, language=language))
    target = TargetReport(name="q4", artifact=whole, verdicts=tuple(verdicts), language=language)
    return ReleaseReport(title="novel", targets=(target,))


def test_page_and_markdown_say_the_same_figures() -> None:
    made = report()
    page, markdown = to_html(made), to_markdown(made)
    [language] = [target.language for target in made.targets]
    assert language is not None
    for figure in (
        f"{language.perplexity().value:,.3f}",
        f"{language.perplexity_ratio().value:.4f}×",
        short_nats(language.mean_kld().value),
        "180 tokens, the second halves of 12 windows of 32",
    ):
        assert figure in page
        assert figure in markdown
    assert "&lt;b&gt;moby" in page
    assert "<b>moby" not in page
    assert page.count("<svg") >= 4
    assert made.to_json()["targets"][0]["language"]["kld"]["mean"]["value"] == language.mean_kld().value


def test_few_windows_are_said_and_have_no_interval() -> None:
    page = to_html(report(3))
    assert "3 windows say too little for an interval" in page
    assert "nan" not in page


@pytest.mark.parametrize("noise", [0.0, 1e-4, 3.0])
def test_every_divergence_can_be_drawn(noise: float) -> None:
    page = to_html(report(noise=noise))
    assert "nan" not in page
    assert "inf" not in page.replace("information", "")


def test_plots_hold_the_mean_the_limit_and_every_window() -> None:
    klds = np.random.default_rng(0).exponential(0.05, 500)
    drawn = plot_divergence(klds, mean=0.05, limit=0.02)
    assert "mean 0.05" in drawn
    assert "limit of the mean 0.02" in drawn
    ratios = 1 + 0.01 * np.random.default_rng(0).normal(size=30)
    drawn = plot_windows(ratios, estimate=1.0, interval=(0.998, 1.002), limit=1.03)
    assert drawn.count("<circle") == 30
    assert "limit 1.03×" in drawn
    assert plot_windows(np.ones(3), estimate=1.0, interval=None)
    assert plot_divergence(np.zeros(9), mean=0.0)


def test_answers_stand_beside_what_was_expected() -> None:
    pytest.importorskip("sacrebleu")
    prompts = [
        Prompt(prompt="elahw", references=("whale",), line=1),
        Prompt(prompt="pihs", references=("boat",), line=2),
    ]
    ours = measure_answers(KnownEngine(), prompts)
    theirs = replace(ours, answers=(replace(ours.answers[0], text="shark"), ours.answers[1]))
    target = TargetReport(name="q4", artifact=subject("q4", 105.0), answers=ours, baseline_answers=theirs)
    made = ReleaseReport(title="novel", targets=(target,))
    for text in (to_html(made), to_markdown(made)):
        assert "whale" in text
        assert "baseline: shark" in text
        assert "exact_match" in text or "exact\\_match" in text


def test_a_limit_far_below_what_was_measured_stands_inside_the_axis() -> None:
    drawn = plot_divergence(np.random.default_rng(0).uniform(0.5, 1.0, 500), mean=0.7, limit=0.01)
    [place] = re.findall(r'class="limit" x1="([\d.]+)"', drawn)
    assert float(place) > Frame().left + 5


def test_no_band_is_spoken_of_where_there_is_none() -> None:
    assert "the band is the interval" in to_html(report())
    assert "the band" not in to_html(report(3))


def test_the_baseline_has_the_perplexity_of_the_reference() -> None:
    made = report()
    [target] = made.targets
    assert target.language is not None
    baseline = subject("checkpoint", 270.0)
    held = replace(target.language, reference_artifact=baseline.digest)
    expected = (
        f"| checkpoint (baseline) | – | {baseline.model_bytes / 1e6:.2f} | {show(held.reference_perplexity().value)} "
    )
    for language, is_there in ((held, True), (replace(held, reference_artifact="sha256:0"), False)):
        one = replace(made, targets=(replace(target, baseline=baseline, language=language),))
        lines = [line for line in to_markdown(one).splitlines() if line.startswith("| checkpoint (baseline)")]
        assert len(lines) == 1
        assert (expected in lines[0]) == is_there, lines[0]
