"""The page at `/`: one HTML file with its style and script inside, which fetches nothing but this server's JSON."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

__all__ = ["DARK", "LIGHT", "Page", "build_page"]

# The report's colours, readable on both grounds by people who see colours differently.
LIGHT: Mapping[str, str] = {
    "paper": "#ffffff",
    "card": "#f4f6f9",
    "ink": "#17202b",
    "soft": "#4f5d6c",
    "rule": "#d6dde5",
    "pass": "#0f6b3a",
    "pass-tint": "#d8efe1",
    "fail": "#b3202c",
    "fail-tint": "#f8dcdc",
    "open": "#855200",
    "open-tint": "#f9ebcf",
    "a": "#0a5fb4",
    "b": "#a84b00",
    "heat": "10 95 180",
    "onbar": "#ffffff",
}
DARK: Mapping[str, str] = {
    "paper": "#0f151c",
    "card": "#18212b",
    "ink": "#e8eef4",
    "soft": "#a5b4c3",
    "rule": "#313e4c",
    "pass": "#56c98a",
    "pass-tint": "#163a2a",
    "fail": "#ff8a80",
    "fail-tint": "#4a2024",
    "open": "#e5b04f",
    "open-tint": "#43341a",
    "a": "#68b1ff",
    "b": "#f2a65a",
    "heat": "104 177 255",
    "onbar": "#0f151c",
}
# Edges of boxes that are typed into must stand out by 3 : 1 from what is around them.
_EDGES = ("#76828f", "#6b7a8a")

_FOLDER = Path(__file__).parent
_SCRIPTS = ("core.js", "charts.js", "answers.js", "try.js", "model.js", "watch.js", "main.js")


@dataclass(frozen=True, slots=True)
class Page:
    """The page as it is sent.

    Attributes:
        body: HTML in UTF-8.
        etag: Changes with the body.
        policy: For the header `content-security-policy`: its own style and script by their hashes, its own server's
            answers, pictures that the reader gave, and nothing else.
    """

    body: bytes
    etag: str
    policy: str


@cache
def build_page() -> Page:
    """Put style and script into the page."""
    style = f"{_colours()}\n{_read('page.css')}"
    script = '"use strict";\n(() => {\n' + "\n".join(_read(name) for name in _SCRIPTS) + "})();\n"
    body = _read("index.html").replace("{{style}}", style).replace("{{script}}", script).encode()
    policy = "; ".join(
        (
            "default-src 'none'",
            f"style-src 'sha256-{_hash(style)}'",
            f"script-src 'sha256-{_hash(script)}'",
            "connect-src 'self'",
            "img-src data: blob:",
            "base-uri 'none'",
            "form-action 'none'",
            "frame-ancestors 'none'",
        )
    )
    return Page(body=body, etag=f'"{hashlib.sha256(body).hexdigest()[:32]}"', policy=policy)


def _colours() -> str:
    light, dark = (
        " ".join(f"--{name}: {value};" for name, value in {**colours, "edge": edge}.items())
        for colours, edge in zip((LIGHT, DARK), _EDGES, strict=True)
    )
    return (
        f":root {{ color-scheme: light dark; {light} }}\n@media (prefers-color-scheme: dark) {{ :root {{ {dark} }} }}"
    )


def _read(name: str) -> str:
    return (_FOLDER / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
