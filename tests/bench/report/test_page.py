from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from bench.gates.verdict import Outcome
from bench.report import Ancestor, ReleaseReport, TargetReport, to_html, to_markdown, write_report
from bench.report.style import DARK, LIGHT
from tests.bench.report import builders as built

HOSTILE = """<script>alert("1")</script>'"><img src=https://evil.example/x onerror=alert(1)>|`\n# x\x00\u202e"""


@pytest.fixture(scope="module")
def release() -> ReleaseReport:
    return built.release()


@pytest.fixture(scope="module")
def page(release: ReleaseReport) -> str:
    return to_html(release)


class _Tags(HTMLParser):
    """Notes tags, attributes and text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] not in ("style", "title"):
            self.text.append(data)

    @property
    def seen(self) -> set[str]:
        return {tag for tag, _ in self.tags}


def test_the_verdict_comes_first_then_every_gate(page: str, release: ReleaseReport) -> None:
    tags = _Tags(page)
    text = " ".join(tags.text)
    assert text.index("A gate is not met") < text.index("Gates") < text.index("Targets")
    assert page.count('<div class="gate">') == len(release.verdicts)
    for verdict in release.verdicts:
        assert verdict.reason.replace("\n", " ") in text


def test_every_part_that_was_measured_has_its_heading(page: str) -> None:
    headings = re.findall(r"<h[23][^>]*>([^<]*)", page)
    for wanted in (
        "Gates",
        "Targets",
        "How the model was made",
        "Accuracy",
        "Latency, one client",
        "Latency at 50 requests a second",
        "Speed against the baseline, in turns",
        "Throughput",
        "Batch sizes and lengths",
        "Load test: constant, 60 requests/s for 30 s",
        "Start and memory",
        "Size",
        "Verification against the checkpoint",
        "Lineage",
        "How it was measured",
    ):
        assert wanted in headings


def test_what_was_not_measured_is_absent() -> None:
    bare = ReleaseReport(title="bare", targets=(TargetReport(name="phone", artifact=built.subject("phone", 12)),))
    page, markdown = to_html(bare), to_markdown(bare)
    assert markdown.startswith("# bare: measured, no gates set")
    for absent in ("Latency", "Accuracy", "How the model", "Load test", "Throughput", "<figure", "nan", "None", "inf"):
        assert absent not in page.split("</style>")[1]
        assert absent not in markdown
    assert "12.00" in markdown
    assert json.dumps(bare.to_json()).count("latenc") == 0


def test_every_swatch_of_the_files_is_one_kind(release: ReleaseReport) -> None:
    kinds = {f"part {number}": 1_000_000 * (12 - number) for number in range(10)}
    small = {"golden vectors": 9_000, "constants": 7_000, "other files": 400_000}
    sizes = replace(built.tensors("server", is_int8=True), kinds=kinds | small)
    many = replace(release, targets=(replace(release.targets[0], tensors=sizes),))
    for one in (release, many):
        plot = re.findall(r"<svg[^>]*><title>Bytes by kind.*?</svg>", to_html(one), re.DOTALL)[0]
        swatches = re.findall(r'<rect class="k(\d)"[^>]*height="10.0"/><text[^>]*>([^<]*)', plot)
        assert len(swatches) > 4
        assert len({colour for colour, _ in swatches}) == len(swatches)
        names = [name for _, name in swatches]
        assert names[-1] == "other"
        assert not {"golden vectors", "constants", "other files"} & set(names)
    assert "server, other: 25.4 MB" in plot  # parts 5 to 9 that found no colour, and the small ones


def test_every_value_of_a_card_has_its_name(page: str) -> None:
    cards = re.findall(r'<div class="wide stacked".*?</table>', page, re.DOTALL)
    assert len(cards) > 8
    for table in cards:
        names = re.findall(r"<th [^>]*>([^<]*)", table)
        for row in re.findall(r"<tr>(<td.*?)</tr>", table, re.DOTALL):
            assert re.findall(r'<td[^>]*data-name="([^"]*)"', row) == names[1:]


def test_one_of_a_kind_is_not_written_as_several() -> None:
    whole = built.target("server", size_mb=23.1, middle=1.9, drop=0.002, seed=1)
    (duet,) = whole.duets
    target = replace(
        whole, duets=(replace(duet, turn_requests=1),), latencies=(built.latency("server", 1.9, rate=46.5835),)
    )
    markdown = to_markdown(ReleaseReport(title="one", targets=(target,)))
    assert "pairs of turns of 1 request in 8 sessions" in markdown
    assert "### Latency at 46.58 requests a second" in markdown
    assert "46.5835" not in markdown


def test_an_engine_that_generates_is_shown_with_its_tokens() -> None:
    target = TargetReport(
        name="chat",
        artifact=built.subject("chat", 700),
        generation=built.generation("chat", 21.0),
        baseline_generation=built.generation("fp32", 40.0),
    )
    markdown = to_markdown(ReleaseReport(title="chat", targets=(target,)))
    assert "generated tokens/s" in markdown
    assert "| chat | to the first token |" in markdown


def test_a_load_of_streams_shows_their_tokens() -> None:
    load = built.load("chat", 900.0, seconds=20, rate=50, stall_s=0.0)
    n = len(load.wall_ns)
    streams = replace(
        load, ttft_ns=load.wall_ns // 3, num_tokens=np.full(n, 7), itl_ns=np.repeat(load.wall_ns // 10, 6)
    )
    target = TargetReport(name="chat", artifact=built.subject("chat", 700), loads=(streams,))
    markdown = to_markdown(ReleaseReport(title="chat", targets=(target,)))
    assert f"{7 * n:,} tokens in answers" in markdown
    assert "| between two tokens | 9" in markdown


def test_the_page_needs_nothing_else(page: str) -> None:
    tags = _Tags(page)
    assert {"svg", "table", "h1", "nav"} <= tags.seen
    assert tags.seen.isdisjoint({"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "use"})
    for tag, attributes in tags.tags:
        assert not {"src", "srcset", "action", "data", "xlink:href", "background"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
        assert attributes.get("href", "#").startswith("#")
        assert "url(" not in attributes.get("style", ""), tag
    style = page.split("<style>")[1].split("</style>")[0]
    assert "url(" not in style
    assert "@import" not in style
    assert "default-src 'none'" in page


def test_links_lead_to_places_in_the_page(page: str) -> None:
    tags = _Tags(page)
    places = [attributes["id"] for _, attributes in tags.tags if "id" in attributes]
    assert len(places) == len(set(places))
    assert {attributes["href"][1:] for tag, attributes in tags.tags if tag == "a"} <= set(places)


def test_every_plot_is_wellformed_and_has_a_text_alternative(page: str) -> None:
    plots = re.findall(r"<svg.*?</svg>", page, re.DOTALL)
    assert len(plots) > 50
    for plot in plots:
        element = ElementTree.fromstring(plot)
        assert element.attrib["role"] == "img"
        title = element[0]
        assert title.tag == "title"
        assert title.text
        assert "nan" not in plot
        width, height = (float(value) for value in element.attrib["viewBox"].split()[2:])
        for child in element.iter("text"):
            assert -1 <= float(child.attrib["x"]) <= width + 1
            assert 0 <= float(child.attrib["y"]) <= height + 1


def test_the_same_release_is_the_same_bytes(release: ReleaseReport, tmp_path: Path) -> None:
    first = [path.read_bytes() for path in write_report(tmp_path / "a", release)]
    assert first == [path.read_bytes() for path in write_report(tmp_path / "b", built.release())]
    assert [path.name for path in write_report(tmp_path / "c", release)] == ["report.html", "report.md", "report.json"]


def test_many_samples_stay_below_two_megabytes() -> None:
    latency = built.latency("server", 1.9, n=20_000)
    rated = built.latency("server", 1.9, n=20_000, rate=50)
    target = TargetReport(
        name="server",
        artifact=built.subject("server", 23),
        latencies=(latency, rated),
        baseline_latencies=(latency, rated),
        loads=(built.load("server", 3.0, seconds=2000, rate=10),),
        evaluation=built.evaluation("server", num_examples=20_000),
        baseline_evaluation=built.evaluation("fp32", num_examples=20_000, seed=5),
    )
    num_bytes = len(to_html(ReleaseReport(title="many", targets=(target,))).encode())
    assert num_bytes < 200_000  # so ten such targets fit into 2 MB


def hostile_release() -> ReleaseReport:
    """Every text that comes from outside is an attack."""
    whole = built.target("server", size_mb=23.1, middle=1.9, drop=0.002, seed=1)
    evaluation = whole.evaluation
    assert evaluation is not None
    assert whole.baseline_evaluation is not None
    labels = (HOSTILE, *evaluation.labels[1:])
    target = replace(
        whole,
        name=HOSTILE,
        artifact=replace(whole.artifact, name=HOSTILE),
        baseline=replace(built.subject("fp32", 90.9), name=HOSTILE),
        verdicts=(built.verdict(HOSTILE, Outcome.FAIL, reason=HOSTILE, unit=HOSTILE),),
        lineage=(Ancestor(role=HOSTILE, digest=HOSTILE, step=HOSTILE, detail=HOSTILE, parents=(HOSTILE, "sha256:x")),),
        verification={HOSTILE: HOSTILE},
        evaluation=replace(evaluation, labels=labels, engine=HOSTILE),
        baseline_evaluation=replace(whole.baseline_evaluation, labels=labels),
        loads=tuple(replace(one, url=HOSTILE, payload=HOSTILE, notes=(HOSTILE,)) for one in whole.loads),
        notes=(HOSTILE,),
    )
    return ReleaseReport(
        title=HOSTILE,
        targets=(target,),
        versions={HOSTILE: HOSTILE},
        command=HOSTILE,
        notes=(HOSTILE,),
        steps=tuple(
            replace(
                step,
                name=HOSTILE,
                summary=HOSTILE,
                macs_of=HOSTILE,
                notes=(HOSTILE,),
                curve=built.curve(HOSTILE, parts=(HOSTILE,)),
            )
            for step in built.steps()
        ),
    )


def test_hostile_text_stays_text() -> None:
    page = to_html(hostile_release())
    tags = _Tags(page)
    assert tags.seen.isdisjoint({"script", "img"})
    assert not any(name.startswith("on") for _, attributes in tags.tags for name in attributes)
    assert "alert(" in "".join(tags.text)
    assert not re.search("[\x00\u202e]", page)
    for plot in re.findall(r"<svg.*?</svg>", page, re.DOTALL):
        ElementTree.fromstring(plot)


def test_hostile_text_stays_text_in_markdown() -> None:
    markdown = to_markdown(hostile_release())
    outside = re.sub(r"(`{4,})sh\n.*?\n\1", "", markdown, flags=re.DOTALL)
    assert "<script" not in outside
    assert "<img" not in outside
    assert not re.search(r"^# x", outside, re.MULTILINE)


def test_markdown_tables_have_equal_columns(release: ReleaseReport) -> None:
    for text in (to_markdown(release), to_markdown(hostile_release())):
        tables = [block for block in text.split("\n\n") if block.startswith("|")]
        assert len(tables) > 10
        for table in tables:
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.strip().splitlines()}) == 1


def test_markdown_says_what_the_page_says(release: ReleaseReport, page: str) -> None:
    markdown = to_markdown(release)
    headings = [text.replace("&#x27;", "'") for text in re.findall(r"<h[23] id[^>]*>([^<]*)", page)]
    assert [re.sub(r" [✅❌⚠].*", "", line.lstrip("# ")) for line in re.findall(r"^##+ .*", markdown, re.MULTILINE)][
        :1
    ] == headings[:1]
    for heading in headings:
        assert re.search(rf"^##+ {re.escape(heading)}", markdown, re.MULTILINE)
    assert "edgesmith run recipe.yaml" in markdown


def test_json_holds_the_figures_of_every_target(release: ReleaseReport, tmp_path: Path) -> None:
    report = json.loads(write_report(tmp_path, release)[2].read_text(encoding="utf-8"))
    assert report["verdict"] == "FAIL"
    assert [target["name"] for target in report["targets"]] == ["server", "edge", "phone"]
    first = report["targets"][0]
    assert first["artifact"]["model_bytes"] == 23_100_000
    assert [one["scenario"] for one in first["latencies"]] == ["single", "server"]
    assert first["tensors"]["kinds"]["int8 weights"] == 10_764_288
    assert first["loads"][0]["num_failed"] > 0


def test_every_step_stands_with_its_sizes_and_its_share_of_the_first(release: ReleaseReport, page: str) -> None:
    markdown = to_markdown(release)
    assert "| merge | the adapter folded into the base | 22,715,141 | 90.86 | – |" in markdown
    assert "| 5,787,653 (25.5 %) | 23.15 (25.5 %) | 327.3 (22.8 %) |" in markdown
    assert "multiply-accumulates of 128 tokens" in markdown
    assert "- 2 heads of layer 3 stay: without them it would have none" in markdown
    assert "| 375 (kept) | 0.953 |" in markdown
    assert page.count("<title>Training: ") == 2
    assert "perplexity from 1,834 to 21.37 at update 10,000 of 12,000, the teacher&#x27;s 19.02" in page
    stored = release.to_json()["steps"]
    assert [step["num_parameters"] for step in stored] == [step.num_parameters for step in release.steps]
    assert stored[0]["curve"] is None
    assert stored[3]["curve"]["metric_updates"] == (0, 75, 150, 225, 300, 375, 450)


def test_a_passed_over_evaluation_is_explained(release: ReleaseReport) -> None:
    later = replace(built.curve(), best_update=450)
    step = replace(release.steps[3], curve=later)
    assert "nearer to the teacher" in to_markdown(replace(release, steps=(step,)))
    assert "nearer to the teacher" not in to_markdown(release)


def test_of_many_evaluations_the_kept_one_is_in_the_table(release: ReleaseReport) -> None:
    updates = tuple(range(0, 4000, 10))
    many = replace(
        built.curve(), best_update=1230, metric_updates=updates, metric_values=tuple(0.9 for _ in updates), losses={}
    )
    step = replace(release.steps[3], curve=many)
    markdown = to_markdown(replace(release, steps=(step,)))
    table = markdown[markdown.index("| update | accuracy |") :].split("\n\n")[0].splitlines()
    assert len(table) == 2 + 12
    assert "| 1,230 (kept) | 0.9 |" in table
    assert (table[2], table[-1]) == ("| 0 | 0.9 |", "| 3,990 | 0.9 |")


def test_no_figure_is_rounded_onto_its_limit() -> None:
    size = 23_999_990
    target = TargetReport(
        name="edge",
        artifact=replace(built.subject("edge", 24), model_bytes=size),
        verdicts=(
            built.verdict("size.max_mb", unit="MB", threshold=24.0, estimate=size / 1e6, bound=size / 1e6),
            built.verdict("latency", threshold=30.0, estimate=29.9, bound=29.99999),
        ),
    )
    report = ReleaseReport(title="edge", targets=(target,))
    for text in (to_html(report), to_markdown(report)):
        assert "23.99999" in text
        assert "29.99999" in text
        assert "30.00 ms" not in text.replace("≤ 30.00 ms", "")


def _luminance(colour: str) -> float:
    parts = np.array([int(colour[place : place + 2], 16) for place in (1, 3, 5)]) / 255
    linear = np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)
    return float(linear @ np.array([0.2126, 0.7152, 0.0722]))


def _contrast(first: str, second: str) -> float:
    """Source: WCAG 2.2, contrast ratio."""
    light, dark = sorted((_luminance(first), _luminance(second)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_colours_can_be_told_from_their_ground(colours: dict[str, str]) -> None:
    for ground in ("paper", "card"):
        for ink in ("ink", "soft", "pass", "fail", "open", "a", "b"):
            assert _contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)
        for kind in range(8):
            assert _contrast(colours[f"k{kind}"], colours[ground]) >= 3, (kind, ground)
    for state in ("pass", "fail", "open"):
        assert _contrast(colours[state], colours[f"{state}-tint"]) >= 4.5, state
        assert _contrast(colours["ink"], colours[f"{state}-tint"]) >= 4.5, state
    for kind in range(8):
        assert _contrast(colours["onbar"], colours[f"k{kind}"]) >= 3, kind


def test_a_long_table_waits_for_its_reader(release: ReleaseReport) -> None:
    kinds = {f"part {number}": 1_000_000 for number in range(20)}
    sizes = replace(built.tensors("server", is_int8=True), kinds=kinds)
    long = to_html(replace(release, targets=(replace(release.targets[0], tensors=sizes, baseline_tensors=None),)))
    assert "<details><summary>What the files hold: 20 kinds of bytes</summary>" in long
    assert "part 19" in long.split("<details>")[1].split("</details>")[0]
    short = replace(sizes, kinds={"weights": 5_000_000})
    one = replace(release, targets=(replace(release.targets[0], tensors=short, baseline_tensors=None),))
    assert "<details" not in to_html(one)
