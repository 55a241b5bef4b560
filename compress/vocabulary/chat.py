"""The words that a chat template puts around every message."""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from compress.checkpoint import read_json
from edgesmith.errors import ArtifactError, UsageError
from edgesmith.files import storage_errors
from serve.runtime.chat_template import render_chat

__all__ = ["chat_texts"]

_CONVERSATIONS: tuple[list[dict[str, str]], ...] = (
    [{"role": "user", "content": "a"}],
    [
        {"role": "system", "content": "a"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "c"},
        {"role": "user", "content": "d"},
    ],
)
_DAY = datetime(2025, 1, 1)
"""For templates that write the date; the same in every run."""


def chat_texts(folder: Path) -> list[str]:
    """Render each chat template of a checkpoint on short conversations.

    A template that refuses them, or that Jinja is not installed for, gives no text: its own words are then split into
    shorter tokens where the corpus has not got them.
    """
    path = folder / "tokenizer_config.json"
    settings = read_json(path) if path.exists() else {}
    named = settings.get("chat_template")
    listed: list[Any] = (
        [one.get("template") for one in named if isinstance(one, dict)] if isinstance(named, list) else [named]
    )
    for path in sorted([*folder.glob("chat_template.jinja"), *folder.glob("additional_chat_templates/*.jinja")]):
        with storage_errors(path):
            listed.append(path.read_text(encoding="utf-8", errors="replace"))
    bos, eos = (_content(settings.get(f"{role}_token")) for role in ("bos", "eos"))
    texts = []
    for template in listed:
        for conversation in _CONVERSATIONS if isinstance(template, str) else ():
            with suppress(UsageError, ArtifactError):
                texts.append(
                    render_chat(
                        template, conversation, add_generation_prompt=True, bos_token=bos, eos_token=eos, now=_DAY
                    )
                )
    return texts


def _content(token: Any) -> str:
    found = token.get("content") if isinstance(token, dict) else token
    return found if isinstance(found, str) else ""
