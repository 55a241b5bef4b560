from __future__ import annotations

import json
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest

from bench.ci import summary_markdown, write_junit, write_summary
from bench.gate import Outcome, Verdict, judge
from bench.report import ReportData, write_report
from bench.start import Start
from edgesmith.artifact import Parent
from edgesmith.gates import AccuracyGate, Gates, LatencyGate, SizeGate, SpeedGate
from tests.bench import evidence_built as built

GATES = Gates(
    accuracy=AccuracyGate(max_drop=0.01),
    size=SizeGate(max_mb=12),
    latency=LatencyGate(max_ms=20),
    speed=SpeedGate(min_speedup=2),
)


@pytest.fixture
def data() -> ReportData:
    ours, theirs = built.pair(1300, 4, 3, num_wrong=60)
    evidence = built.evidence(
        evaluation=ours, baseline_evaluation=theirs, latency=built.latency([9.0, 11.0] * 50), duet=built.duet(2.2)
    )
    return ReportData(
        title="news <int8>",
        artifact=evidence.artifact,
        baseline=evidence.baseline,
        verdicts=tuple(judge(GATES, evidence)),
        lineage=(Parent(role="fp32", digest="sha256:fp32"),),
        verification={"max_abs_difference": 0.01234, "rows": 64},
        evaluation=ours,
        baseline_evaluation=theirs,
        latency=evidence.latency,
        duet=evidence.duet,
        start=Start(
            engine="onnxruntime",
            artifact_digest="sha256:int8",
            threads=1,
            num_starts=3,
            startup_cpu_ms=100,
            verify_ms=20,
            load_ms=150,
            first_run_ms=12,
            peak_rss_bytes=120_000_000,
        ),
        versions={"onnxruntime": "1.31.1"},
        command="edgesmith run recipe.yaml",
        notes=("batch | of one",),
    )


def test_the_report_begins_with_the_verdict_and_compares_side_by_side(data: ReportData, tmp_path: Path) -> None:
    markdown, _, _ = (path.read_text(encoding="utf-8") for path in write_report(tmp_path, data))
    first = markdown.splitlines()[0]
    assert first == "# ❌ news &lt;int8>: FAIL (2 PASS, 1 FAIL, 1 INCONCLUSIVE)"
    assert "| model file | 90.90 MB | 23.00 MB | 3.95× less |" in markdown
    assert "| accuracy | 95.15 % | 95.08 % | −0.08 points |" in markdown
    assert "n too small, needs ≥ 459" in markdown
    assert "edgesmith run recipe.yaml" in markdown
    assert "batch \\| of one" not in markdown.split("## Environment")[1].split("|")[0]


def test_markdown_tables_have_equal_columns(data: ReportData, tmp_path: Path) -> None:
    markdown = write_report(tmp_path, data)[0].read_text(encoding="utf-8")
    for table in markdown.split("\n\n"):
        if table.startswith("|"):
            widths = {line.replace("\\|", "").count("|") for line in table.strip().splitlines()}
            assert len(widths) == 1


def test_the_json_report_holds_what_the_others_show(data: ReportData, tmp_path: Path) -> None:
    report = json.loads(write_report(tmp_path, data)[1].read_text(encoding="utf-8"))
    assert report["verdict"] == "FAIL"
    assert [one["verdict"] for one in report["gates"]] == ["PASS", "FAIL", "INCONCLUSIVE", "PASS"]
    assert report["artifact"]["model_bytes"] == 23_000_000
    assert report["latency"]["latency_ms"]["p99"] is None
    assert report["comparison"]["cpu_speedup"]["estimate"] == pytest.approx(2.2, rel=0.05)


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.seen: set[str] = set()
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.add(tag)
        self.links += [value or "" for name, value in attrs if name in ("href", "src")]


def test_the_page_needs_nothing_else(data: ReportData, tmp_path: Path) -> None:
    page = write_report(tmp_path, data)[2].read_text(encoding="utf-8")
    tags = _Tags()
    tags.feed(page)
    assert {"svg", "table", "h1"} <= tags.seen
    assert tags.seen.isdisjoint({"script", "link", "img", "iframe"})
    assert tags.links == []
    assert "news &lt;int8&gt;" in page
    assert "<int8>" not in page
    for part in page.split("<svg")[1:]:
        ElementTree.fromstring("<svg" + part.split("</svg>")[0] + "</svg>")


def test_the_same_report_is_the_same_bytes(data: ReportData, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_report(tmp_path / "a", data)]
    assert first == [path.read_bytes() for path in write_report(tmp_path / "b", data)]


def test_a_report_of_sizes_alone_has_no_verdict(tmp_path: Path) -> None:
    markdown = write_report(tmp_path, ReportData(title="bare", artifact=built.subject("int8")))[0].read_text()
    assert markdown.startswith("# bare: measured, no gates set")
    assert "## Latency" not in markdown


def test_junit_counts_and_reasons_are_those_of_the_verdicts(data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "junit.xml"
    write_junit(path, data.verdicts, suite='news "int8" & more')
    suite = ElementTree.parse(path).getroot()[0]
    assert suite.attrib == {
        "name": 'news "int8" & more',
        "tests": "4",
        "failures": "1",
        "errors": "1",
    }
    cases = {case.attrib["name"]: case[0] for case in suite}
    assert {name: child.tag for name, child in cases.items()} == {
        "accuracy": "system-out",
        "size.max_mb": "failure",
        "latency": "error",
        "speed": "system-out",
    }
    reasons = {one.gate: one.reason for one in data.verdicts}
    assert cases["size.max_mb"].attrib["message"] == reasons["size.max_mb"]
    assert cases["latency"].attrib["message"] == reasons["latency"]
    write_junit(tmp_path / "again.xml", data.verdicts, suite='news "int8" & more')
    assert path.read_bytes() == (tmp_path / "again.xml").read_bytes()


def test_summary_shows_every_gate_and_can_append(data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("earlier\n")
    write_summary(path, data.verdicts, title="news", append=True)
    text = path.read_text(encoding="utf-8")
    assert text.startswith("earlier\n")
    assert "### ❌ news: FAIL" in text
    assert text.count("| accuracy |") == 1
    write_summary(path, data.verdicts, title="news")
    assert path.read_text(encoding="utf-8") == summary_markdown(data.verdicts, title="news")


def test_hostile_text_stays_text(tmp_path: Path) -> None:
    verdict = Verdict(
        gate="accuracy",
        verdict=Outcome.FAIL,
        reason="a | b <script>\x00\n]]>",
        unit="accuracy",
        threshold=0.01,
        estimate=None,
        bound=None,
    )
    write_junit(tmp_path / "j.xml", [verdict])
    ElementTree.parse(tmp_path / "j.xml")
    assert "| a \\| b &lt;script>" in summary_markdown([verdict])
