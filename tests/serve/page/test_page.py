from __future__ import annotations

import base64
import hashlib
import re
from itertools import product

import pytest

from bench.report import style
from serve.page import DARK, LIGHT, build_page
from tests.serve.page.running import Running


def test_a_page_is_one_file_that_names_no_other_place() -> None:
    body = build_page().body.decode()
    assert "{{" not in body
    assert re.findall(r"<(?:link|script|img|iframe)[^>]+(?:src|href)=.(?!data:)", body) == []
    assert re.findall(r"""https?://(?!www\.w3\.org/2000/svg)[^\s"'`)]+""", body) == []
    assert re.findall(r"\son\w+=", body) == []
    assert re.findall(r"\sstyle=", body) == []


def test_policy_allows_the_pages_own_style_and_script_and_no_other() -> None:
    page = build_page()
    for tag in ("style", "script"):
        (content,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page.body.decode(), re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in page.policy
    assert "unsafe" not in page.policy
    assert "default-src 'none'" in page.policy


def test_colours_are_the_reports() -> None:
    assert {name: style.LIGHT[name] for name in LIGHT} == LIGHT
    assert {name: style.DARK[name] for name in DARK} == DARK


@pytest.mark.parametrize("colours", [LIGHT, DARK], ids=["light", "dark"])
def test_texts_stand_out_from_their_grounds(colours: dict[str, str]) -> None:
    pairs = [*product(("ink", "soft", "a", "fail", "open"), ("paper", "card"))]
    pairs += [(name, f"{name}-tint") for name in ("pass", "fail", "open")] + [("onbar", "a")]
    for ink, ground in pairs:
        assert contrast(colours[ink], colours[ground]) >= 4.5, (ink, ground)


def contrast(one: str, other: str) -> float:
    """Ratio of two colours' luminances, as WCAG 2 has it."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    high, low = sorted((luminance(one), luminance(other)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_page_is_sent_once_until_it_changes(server: Running) -> None:
    first = server.ask("GET", "/")
    assert first.status == 200
    assert first.headers["content-type"] == "text/html; charset=utf-8"
    assert first.headers["content-security-policy"] == build_page().policy
    assert first.headers["cache-control"] == "no-cache"
    again = server.ask("GET", "/", headers={"if-none-match": f'"other", W/{first.headers["etag"]}'})
    assert (again.status, again.body) == (304, b"")
    assert server.ask("GET", "/", headers={"if-none-match": '"other"'}).status == 200


def test_page_is_open_where_its_figures_need_a_key(locked_server: Running) -> None:
    assert locked_server.ask("GET", "/").status == 200
    assert locked_server.ask("GET", "/healthz").json() == {"ready": True}
    for path in ("/live.json", "/models.json", "/metrics", "/openapi.json"):
        assert locked_server.ask("GET", path).status == 401
