"""The page in a real browser, with a real server behind it."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgesmith.artifact import open_artifact
from edgesmith.tasks import Example, load_task
from serve.config import ModelSpec, ServerConfig
from serve.runtime import open_engine
from tests.serve.page.browser import Browser
from tests.serve.page.conftest import KEY
from tests.serve.page.running import Running, running
from tests.serve.tagger_built import tagger_folder

TEXT = "A late goal won the cup."


@pytest.fixture(autouse=True)
def no_problems(browser: Browser) -> None:
    browser.open("about:blank")
    browser.problems.clear()


def test_a_text_gets_its_label_and_the_figures_count_it(
    server: Running, browser: Browser, classifier_path: Path
) -> None:
    task = load_task(classifier_path)
    engine = open_engine(open_artifact(classifier_path))
    arrays = task.encode([Example(TEXT)])
    (right,) = task.decode(engine.run(arrays), arrays, [Example(TEXT)])
    engine.close()

    browser.open(server.url + "/#news%2F2")
    browser.wait("document.querySelector('#try-text')")
    assert browser.text("#h-model").split()[:3] == ["news", "version", "2"]
    browser.fill("#try-text", TEXT)
    browser.click("#try button[type=submit]")
    browser.wait("document.querySelector('#try [role=region] table')")
    label, score = browser.text("#try [role=region] tbody tr").split("\t")[:2]
    assert label == right["label"]
    assert score == f"{100 * right['score']:.1f} %"
    assert "version 2" in browser.text("#try .note")
    browser.wait("/[1-9]\\d* answered/.test(document.querySelector('#failures').innerText)")
    assert browser.problems == []


def test_entities_are_marked_in_their_text(minilm_folder: Path, tmp_path: Path, browser: Browser) -> None:
    path = tagger_folder(tmp_path / "tagger", minilm_folder).folder
    with running(ServerConfig(models=(ModelSpec(name="places", path=path, threads=1),), port=0, drain_s=5)) as server:
        browser.open(server.url)
        browser.wait("document.querySelector('#try-text')")
        browser.fill("#try-text", "\U0001f600 Ann left Paris for New York.")
        browser.click("#try button[type=submit]")
        browser.wait("document.querySelector('#try [role=region] table')")
        assert browser.text("#try .answer") == "\U0001f600 Ann left Paris LOC for New York LOC."
        rows = browser.text("#try [role=region] tbody").splitlines()
        assert [row.split("\t")[:2] for row in rows if row.strip()] == [["Paris", "LOC"], ["New York", "LOC"]]
        assert browser.problems == []


def test_arms_of_a_split_are_shown(server: Running, browser: Browser) -> None:
    browser.open(server.url + "/#news%2F1")
    browser.wait("document.querySelector('#traffic table')")
    rows = browser.text("#traffic tbody").splitlines()
    assert [row.split("\t")[:3] for row in rows] == [["1", "control", "75.0 %"], ["2", "canary", "25.0 %"]]
    assert browser.problems == []


def test_a_graph_without_a_task_takes_tensors(server: Running, browser: Browser) -> None:
    browser.open(server.url + "/#affine%2F1")
    browser.wait("document.querySelector('#try-tensors')")
    browser.click("#try button[type=submit]")
    browser.wait("document.querySelector('#try [role=region] table')")
    assert browser.text("#try [role=region] tbody tr").split("\t") == ["y", "FP32", "1 × 3", "1, 1, 1"]
    assert browser.problems == []


def test_the_servers_refusal_is_shown_in_its_words(server: Running, browser: Browser) -> None:
    browser.open(server.url + "/#affine%2F1")
    browser.wait("document.querySelector('#try-tensors')")
    browser.fill("#try-tensors", '{"inputs": []}')
    browser.click("#try button[type=submit]")
    browser.wait("document.querySelector('#try .error')")
    assert "the request has no inputs" in browser.text("#try .error")
    assert all("400" in problem for problem in browser.problems)


def test_a_key_is_asked_for_and_kept_nowhere(locked_server: Running, browser: Browser) -> None:
    browser.open(locked_server.url)
    browser.wait("!document.querySelector('#ask').hidden")
    assert browser.eval("document.activeElement.id") == "key"
    browser.fill("#key", "wrong")
    browser.click("#key-form button")
    browser.wait("!document.querySelector('#key-wrong').hidden")
    browser.fill("#key", KEY)
    browser.click("#key-form button")
    browser.wait("document.querySelector('#try-text')")
    assert browser.eval("document.querySelector('#ask').hidden")
    browser.fill("#try-text", TEXT)
    browser.click("#try button[type=submit]")
    browser.wait("document.querySelector('#try [role=region] table')")
    assert "$EDGESMITH_KEY" in browser.text("#curl pre")
    assert browser.eval("[document.cookie, localStorage.length, sessionStorage.length]") == ["", 0, 0]
    assert KEY not in browser.eval("document.documentElement.outerHTML")
    assert all("401" in problem for problem in browser.problems)


def test_a_completion_is_streamed(tiny_text: Path, browser: Browser) -> None:
    spec = ModelSpec(name="tiny", path=tiny_text, threads=1, num_context=256)
    with running(ServerConfig(models=(spec,), port=0, drain_s=5)) as server:
        browser.open(server.url)
        browser.wait("document.querySelector('#try .tabs')")
        browser.click("#try .tabs button:nth-child(2)")
        browser.fill("#try-prompt", "The capital of")
        browser.fill("#try-tokens", "12")
        browser.click("#try button[type=submit]")
        browser.wait(
            "/^\\d+ tokens · .*tokens\\/s · first after .* · (length|stop)$/.test("
            "document.querySelector('#try .note')?.innerText)"
        )
        written = browser.eval("document.querySelector('#try [role=region]').dataset.text")
        body = '{"model": "tiny", "prompt": "The capital of", "max_tokens": 12, "temperature": 0}'
        right = server.ask("POST", "/v1/completions", body, {"content-type": "application/json"}).json()
        assert written == right["choices"][0]["text"]
        assert written
        browser.wait("document.querySelector('#figures').innerText.includes('Written')")
        assert browser.problems == []


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("is_dark", [False, True], ids=["light", "dark"])
def test_nothing_scrolls_sideways_and_everything_has_a_name(
    server: Running, browser: Browser, width: int, is_dark: bool
) -> None:
    browser.open(server.url, width=width, is_dark=is_dark)
    browser.wait("document.querySelector('#curl pre')")
    assert browser.eval("document.documentElement.scrollWidth <= document.documentElement.clientWidth")
    nameless = (
        "[...document.querySelectorAll('textarea, input, button, a, svg')].filter((one) => "
        "!(one.labels?.length || one.getAttribute('aria-label') || one.textContent.trim())).map((one) => one.outerHTML)"
    )
    assert browser.eval(nameless) == []
    ground = browser.eval("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 21, 28)" if is_dark else "rgb(255, 255, 255)")
    assert browser.problems == []
