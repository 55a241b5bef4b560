"""What is recorded of a request: figures and labels, never texts."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from serve.traffic.outcome import Outcome
from serve.traffic.recorder import Line
from serve.traffic.shadows import Agreement

__all__ = ["feedback_line", "request_line", "shadow_line"]

_MAX_ROWS = 32
"""Rows of one request whose labels are recorded."""


def request_line(at_s: float, name: str, version: str, arm: str, outcome: Outcome) -> Line:
    """The line of a request that has ended."""
    return partial(_request, at_s, name, version, arm, outcome)


def _request(at_s: float, name: str, version: str, arm: str, outcome: Outcome) -> dict[str, Any]:
    line: dict[str, Any] = {
        "kind": "request",
        "time": round(at_s, 6),
        "id": outcome.request_id,
        "model": name,
        "version": version,
        "arm": arm,
        "status": "cancelled" if outcome.is_cancelled else outcome.reason or "ok",
        "duration_ms": round(outcome.duration_ns / 1e6, 3),
        "queue_ms": round(outcome.queue_ns / 1e6, 3),
        "rows": outcome.num_rows,
    }
    if outcome.num_tokens is not None:
        line["tokens"] = outcome.num_tokens
    if outcome.logits is not None:
        line |= _answer(outcome)
    return line


def _answer(outcome: Outcome) -> dict[str, Any]:
    assert outcome.logits is not None
    logits = outcome.logits[:_MAX_ROWS].astype(np.float64)
    likely = np.exp(logits - logits.max(axis=1, keepdims=True))
    best = logits.argmax(axis=1)
    scores = (likely.max(axis=1) / likely.sum(axis=1)).round(6).tolist()
    names = outcome.labels
    labels = [names[index] if names is not None and index < len(names) else int(index) for index in best.tolist()]
    if outcome.num_rows == 1:
        return {"label": labels[0], "score": scores[0]}
    return {"labels": labels, "scores": scores}


def shadow_line(at_s: float, name: str, version: str, request_id: str, agreement: Agreement | None) -> Line:
    """The line of a shadow's answer; None where it gave none."""
    return partial(_shadow, at_s, name, version, request_id, agreement)


def _shadow(at_s: float, name: str, version: str, request_id: str, agreement: Agreement | None) -> dict[str, Any]:
    line: dict[str, Any] = {
        "kind": "shadow",
        "time": round(at_s, 6),
        "id": request_id,
        "model": name,
        "version": version,
        "arm": "shadow",
        "status": "failed" if agreement is None else "ok",
    }
    if agreement is not None:
        line |= {
            "agrees": agreement.is_same,
            "max_abs_difference": agreement.max_abs_difference,
            "cosine": round(agreement.cosine, 6),
        }
    return line


def feedback_line(at_s: float, name: str, version: str, request_id: str, score: float) -> Line:
    """The line of somebody's judgement of an answer."""
    return partial(
        dict, kind="feedback", time=round(at_s, 6), id=request_id, model=name, version=version, score=round(score, 6)
    )
