"""The page in a real browser: nothing in it may scroll sideways, overlap, fail or stay light in the dark."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from dataclasses import dataclass
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

from bench.report import ReleaseReport, TargetReport, to_html
from tests.bench.report import builders as built
from tests.bench.report.test_page import hostile_release

_NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
CHROMIUM = next((found for name in _NAMES if (found := shutil.which(name))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")

_FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=4000",
    "--window-size=1600,1200",
)
_MEASURE = """
addEventListener("load", () => {
  const page = document.querySelector("iframe").contentDocument, root = page.documentElement;
  const outside = [...page.body.querySelectorAll("*")].filter(
    (one) => !one.closest(".wide") && !one.closest("svg") && one.getBoundingClientRect().right > root.clientWidth + 1);
  const overlaps = [], cut = [];
  for (const plot of page.querySelectorAll("svg")) {
    const frame = plot.getBoundingClientRect();
    const texts = [...plot.querySelectorAll("text")];
    const boxes = texts.map((one) => one.getBoundingClientRect());
    boxes.forEach((a, i) => {
      if (a.left < frame.left - 2 || a.right > frame.right + 2) cut.push(texts[i].textContent);
      boxes.slice(i + 1).forEach((b, j) => {
        const width = Math.min(a.right, b.right) - Math.max(a.left, b.left);
        const height = Math.min(a.bottom, b.bottom) - Math.max(a.top, b.top);
        if (width > 2 && height > 4) overlaps.push([texts[i].textContent, texts[i + 1 + j].textContent]);
      });
    });
  }
  const style = page.defaultView.getComputedStyle(page.body);
  const smallest = Math.min(...[...page.querySelectorAll("svg text")].map((one) => {
    const plot = one.closest("svg");
    return parseFloat(page.defaultView.getComputedStyle(one).fontSize) * plot.getBoundingClientRect().width / 400;
  }));
  console.log("measured");
  document.title = JSON.stringify({
    overflow: root.scrollWidth - root.clientWidth, outside: outside.map((one) => one.outerHTML.slice(0, 120)),
    overlaps, cut, ground: style.backgroundColor, ink: style.color, height: root.scrollHeight, smallest,
    scrolled: [...page.querySelectorAll(".wide")].filter((one) => one.scrollWidth > one.clientWidth + 1)
      .map((one) => [one.className, one.textContent.trim().slice(0, 80)]),
    num_plots: page.querySelectorAll("svg").length, num_scripts: page.scripts.length,
  });
});
"""


@dataclass(frozen=True)
class Seen:
    """What the browser measured, and what it wrote into its console."""

    facts: dict[str, Any]
    console: list[str]


def look(page: str, folder: Path, *, width: int, is_dark: bool = False) -> Seen:
    """Open a page in a frame of a width."""
    frame = f'<iframe style="width:{width}px;height:900px;border:0" srcdoc="{escape(page)}"></iframe>'
    outer = folder / "outer.html"
    outer.write_text(
        f'<!doctype html><meta charset="utf-8"><title>-</title><script>{_MEASURE}</script>{frame}', encoding="utf-8"
    )
    scheme = f"--blink-settings=preferredColorScheme={0 if is_dark else 1}"
    command = [str(CHROMIUM), *_FLAGS, scheme, f"--user-data-dir={folder / 'profile'}", "--dump-dom", outer.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    title = re.search(r"<title>(.*?)</title>", done.stdout)
    assert title is not None
    assert title[1] != "-", done.stderr[-2000:]
    return Seen(json.loads(unescape(title[1])), [line for line in done.stderr.splitlines() if "CONSOLE" in line])


@pytest.fixture(scope="module")
def page() -> str:
    return to_html(built.release())


@pytest.mark.parametrize("width", [360, 390, 768, 1080, 1280])
def test_nothing_scrolls_sideways_or_overlaps(page: str, tmp_path: Path, width: int) -> None:
    facts = look(page, tmp_path, width=width).facts
    assert facts["num_plots"] > 50
    assert facts["overflow"] <= 0
    assert facts["outside"] == []
    assert facts["overlaps"] == []
    assert facts["cut"] == []
    assert facts["smallest"] >= 8.5
    assert [text for name, text in facts["scrolled"] if width >= 1280 or "stacked" in name] == []


@pytest.mark.parametrize("width", [390, 1300])
def test_percentiles_that_need_more_requests_are_not_cut_off(tmp_path: Path, width: int) -> None:
    target = TargetReport(
        name="a-target-of-a-long-name",
        artifact=built.subject("server", 23.1),
        latencies=(built.latency("server", 1914.5, n=500), built.latency("server", 1914.5, n=60, rate=46.5835)),
        loads=(built.load("server", 1300.0, seconds=30, rate=10, stall_s=0.0),),
    )
    page = to_html(ReleaseReport(title="few", targets=(target,)))
    assert page.count("needs ≥") >= 4
    scrolled = look(page, tmp_path, width=width).facts["scrolled"]
    assert [text for name, text in scrolled if width >= 1280 or "stacked" in name] == []


def test_the_console_stays_empty(page: str, tmp_path: Path) -> None:
    seen = look(page, tmp_path, width=390)
    assert len(seen.console) == 1, seen.console
    assert "measured" in seen.console[0]
    assert seen.facts["num_scripts"] == 0


def test_light_and_dark_follow_the_reader(page: str, tmp_path: Path) -> None:
    light = look(page, tmp_path / "light", width=800) if (tmp_path / "light").mkdir() is None else None
    dark = look(page, tmp_path / "dark", width=800, is_dark=True) if (tmp_path / "dark").mkdir() is None else None
    assert light is not None
    assert dark is not None
    assert light.facts["ground"] == "rgb(255, 255, 255)"
    assert dark.facts["ground"] == "rgb(15, 21, 28)"
    assert light.facts["ink"] != dark.facts["ink"]


def test_hostile_names_run_nothing_and_break_no_layout(tmp_path: Path) -> None:
    seen = look(to_html(hostile_release()), tmp_path, width=390)
    assert len(seen.console) == 1, seen.console
    assert seen.facts["num_scripts"] == 0
    assert seen.facts["overflow"] <= 0


def test_a_bare_release_is_a_page_too(tmp_path: Path) -> None:
    bare = ReleaseReport(title="bare", targets=())
    assert look(to_html(bare), tmp_path, width=390).facts["overflow"] <= 0
