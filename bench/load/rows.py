"""Rows of data as texts of requests."""

from __future__ import annotations

from pathlib import Path

from bench.load.plan import LoadPlan
from edgesmith.data import Row, sample_rows
from edgesmith.errors import DataError

__all__ = ["PACKAGED", "read_texts", "sampled_rows", "text_of"]

PACKAGED = "no data were given: the requests hold the packaged samples"
_USUAL = ("text", "prompt", "sentence", "question", "input")


def sampled_rows(plan: LoadPlan) -> tuple[list[Row], tuple[str, ...]]:
    """Draw the rows that become requests, and say so where they are the packaged ones.

    Raises:
        DataError: The file is damaged or empty.
    """
    if plan.data is not None:
        return sample_rows(plan.data, plan.num_payloads * plan.batch_size, plan.seed), ()
    from edgesmith.tasks import sample_texts

    texts = sample_texts()[: plan.num_payloads * plan.batch_size]
    if len(texts) < plan.batch_size:
        texts *= plan.batch_size // len(texts) + 1
    rows = [Row(Path("sample_texts.txt"), line, {"text": text}) for line, text in enumerate(texts, start=1)]
    return rows, (PACKAGED,)


def read_texts(plan: LoadPlan) -> tuple[list[str], tuple[str, ...]]:
    """Draw the texts that become requests.

    Raises:
        DataError: The file is damaged or a row has no text.
    """
    rows, notes = sampled_rows(plan)
    return [text_of(row, "text", plan, is_only=True) for row in rows], notes


def text_of(row: Row, name: str, plan: LoadPlan, *, is_only: bool) -> str:
    """Give a row's text: the column named so in the plan, like the input, or (if it is the only one) the usual ones.

    Raises:
        DataError: There is no such column, or it holds no text.
    """
    wanted = [plan.columns.get(name, name)]
    if is_only and name not in plan.columns:
        wanted += [plan.columns.get("text", "text"), *_USUAL]
    for column in wanted:
        if column in row.values:
            text = row.values[column]
            if not isinstance(text, str) or not text:
                raise DataError(f"{row.place}: the column {column!r} holds no text")
            return text
    there = ", ".join(map(repr, row.values))
    raise DataError(f"{row.place}: no column {wanted[0]!r}; there: {there}", mend="Name it: --column text=NAME.")
