from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.gates.ci import (
    annotation_lines,
    comment_markdown,
    count_line,
    summary_markdown,
    verdict_rows,
    write_comment,
    write_junit,
    write_summary,
)
from bench.gates.judge import Outcome, Verdict, judge
from edgesmith.gates import (
    AccuracyGate,
    FlipsGate,
    Gates,
    LatencyGate,
    RegressionGate,
    SizeGate,
    SpeedGate,
    ThroughputGate,
)
from tests.bench import evidence_built as built

GATES = Gates(
    accuracy=(AccuracyGate(max_drop=0.01, min=0.9),),
    flips=FlipsGate(max_rate=0.02),
    size=SizeGate(max_mb=12, min_reduction=3.5),
    latency=(LatencyGate(max_ms=20),),
    throughput=ThroughputGate(min_per_second=150),
    speed=SpeedGate(min_speedup=2),
    regression=RegressionGate(max_slowdown=0.05),
)


@pytest.fixture(scope="module")
def verdicts() -> list[Verdict]:
    ours, theirs = built.pair(1300, 4, 3, num_wrong=60)
    evidence = built.evidence(
        evaluation=ours,
        baseline_evaluation=theirs,
        latencies=(built.latency([9.0, 11.0] * 50),),
        throughputs=(built.throughput([1.0] * 9),),
        duets=(built.duet(2.2),),
    )
    return judge(GATES, evidence)


def hostile(reason: str = "a | b *c* `d` [e](f) <script>\x00\r\n]]>") -> Verdict:
    return Verdict(
        gate="latency [a|b]",
        verdict=Outcome.FAIL,
        reason=reason,
        unit="accuracy",
        threshold=0.01,
        estimate=None,
        bound=None,
    )


def test_rows_say_what_was_measured_shown_and_asked_for(verdicts: list[Verdict]) -> None:
    rows = {row.gate: row for row in verdict_rows(verdicts)}
    assert rows["accuracy"].measured == "0.08 points"
    assert rows["accuracy"].bound.startswith("≤ 0.")
    assert rows["accuracy"].limit == "≤ 1 points"
    assert rows["accuracy"].evidence == "1,300 examples, 95 % confidence"
    assert rows["accuracy.min"].measured == "95.08 %"
    assert rows["accuracy.min"].bound.startswith("≥ 9")
    assert rows["accuracy.min"].limit == "≥ 90 %"
    assert rows["flips"].limit == "≤ 2 %"
    assert rows["size.max_mb"].bound == "exact"
    assert rows["size.max_mb"].measured == "23.00 MB"
    assert rows["size.min_reduction"].limit == "≥ 3.5×"
    assert (rows["latency"].measured, rows["latency"].bound) == ("–", "–")
    assert rows["latency"].evidence == "100 requests, 99 % confidence, needs about 459"
    assert rows["throughput"].measured == "100.00/s"
    assert rows["throughput"].bound == "≤ 100.00/s"  # of a FAIL, the bound on the limit's side
    assert rows["speed"].bound.startswith("≥ 2.")
    assert rows["regression.max_slowdown"].bound.startswith("≤ -5")


def test_a_bound_just_outside_is_not_shown_as_inside() -> None:
    verdict = Verdict(
        gate="flips",
        verdict=Outcome.INCONCLUSIVE,
        reason="",
        unit="share",
        threshold=0.02,
        estimate=0.01,
        bound=0.0200001,
        confidence=0.95,
    )
    [row] = verdict_rows([verdict])
    assert float(row.bound.split()[1]) > 2
    [inside] = verdict_rows([replace(verdict, at_least=True)])
    assert inside.bound == "≥ 2.00001 %"


def test_junit_has_failures_and_skips_with_reasons(verdicts: list[Verdict], tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    write_junit(path, verdicts, suite='news "int8" & more')
    root = ElementTree.parse(path).getroot()
    expected = {"name": 'news "int8" & more', "tests": "9", "failures": "2", "errors": "0", "skipped": "1"}
    assert root.attrib == expected
    assert root[0].attrib == expected
    cases = {case.attrib["name"]: case[0] for case in root[0]}
    assert {name: child.tag for name, child in cases.items()} == {
        "accuracy": "system-out",
        "accuracy.min": "system-out",
        "flips": "system-out",
        "size.max_mb": "failure",
        "size.min_reduction": "system-out",
        "latency": "skipped",
        "throughput": "failure",
        "speed": "system-out",
        "regression.max_slowdown": "system-out",
    }
    reasons = {one.gate: one.reason for one in verdicts}
    assert cases["size.max_mb"].attrib["message"] == reasons["size.max_mb"]
    assert cases["latency"].attrib["message"] == reasons["latency"]
    assert cases["speed"].text == reasons["speed"]


def test_the_same_verdicts_are_the_same_bytes(verdicts: list[Verdict], tmp_path: Path) -> None:
    for name, write in (("j", write_junit), ("s", write_summary), ("c", write_comment)):
        write(tmp_path / f"{name}1", verdicts)
        write(tmp_path / f"{name}2", list(verdicts))
        assert (tmp_path / f"{name}1").read_bytes() == (tmp_path / f"{name}2").read_bytes()


def test_summary_shows_every_gate_and_can_append(verdicts: list[Verdict], tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("earlier\n")
    write_summary(path, verdicts, title="news", append=True)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("earlier\n")
    assert "### ❌ news: FAIL" in text
    assert "6 PASS, 2 FAIL, 1 INCONCLUSIVE." in text
    for verdict in verdicts:
        assert text.count(f"| {verdict.gate} |") == 1
        assert verdict.reason.replace("*", r"\*") in text
    write_summary(path, verdicts, title="news")
    assert path.read_text(encoding="utf-8") == summary_markdown(verdicts, title="news")


def test_a_comment_starts_with_its_marker_and_the_outcome_and_folds_the_rest(verdicts: list[Verdict]) -> None:
    first, second, _, *rest = comment_markdown(verdicts, title="news", link="https://ci/x (1)").splitlines()
    assert first == "<!-- edgesmith-gates -->"
    assert second == "**❌ news: FAIL** (6 PASS, 2 FAIL, 1 INCONCLUSIVE)"
    fold = rest.index("<details><summary>All gates</summary>")
    shown = "\n".join(rest[:fold])
    assert "**size.max_mb**" in shown
    assert "**latency**" in shown
    assert "**speed**" not in shown
    assert "| speed |" in "\n".join(rest[fold:])
    assert rest[-1] == "[Full report](https://ci/x%20(1%29)"


def test_a_comment_stays_below_the_limit_of_a_comment(verdicts: list[Verdict]) -> None:
    text = comment_markdown([hostile("x" * 900)] * 200, marker="a --> b")
    assert len(text) < 65_536
    assert text.startswith("<!-- a --")
    assert text.splitlines()[0].count("-->") == 1
    assert "too long for a comment" in text


def test_markdown_tables_have_equal_columns(verdicts: list[Verdict]) -> None:
    for text in (summary_markdown([*verdicts, hostile()]), comment_markdown([*verdicts, hostile()])):
        widths = {line.replace("\\|", "").count("|") for line in text.splitlines() if line.startswith("|")}
        assert widths == {7}


def test_annotations_are_errors_and_warnings(verdicts: list[Verdict]) -> None:
    lines = annotation_lines(verdicts, title="news: server, int8")
    assert [line.split("::")[1].split("title=")[0] for line in lines] == ["error ", "warning ", "error "]
    assert lines[0].startswith("::error title=news%3A server%2C int8 size.max_mb%3A FAIL::the model is 23.00 MB")
    assert annotation_lines([hostile("50 %\nof all")])[0].endswith("::50 %25%0Aof all")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    write_junit(tmp_path / "j.xml", [hostile()])
    ElementTree.parse(tmp_path / "j.xml")
    text = summary_markdown([hostile()])
    assert r"a \| b \*c\* \`d\` \[e](f) &lt;script>" in text


def test_nothing_judged_is_no_pass() -> None:
    assert "INCONCLUSIVE" in summary_markdown([])
    assert count_line([]) == "no gates"
