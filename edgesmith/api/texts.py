"""Which text a command proves or measures a language model on when the user names a file, or none."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

from edgesmith.errors import UsageError
from edgesmith.progress import Progress

if TYPE_CHECKING:
    from edgesmith.stages.texts import Texts

__all__ = ["named_texts", "proof_text", "proof_texts"]

_SHORT_WINDOW = 64
"""Tokens of a window of the packaged sentences, which are few."""


def named_texts(path: Path, *, num_windows: int, window: int = 512, columns: Mapping[str, str] | None = None) -> Texts:
    """Windows of a file of the user's.

    Raises:
        UsageError: it is not there.
    """
    from edgesmith.stages.texts import Texts

    if not path.is_file():
        raise UsageError(f"{path}: no such text file", mend="Check the path.")
    return Texts(path=path, num_windows=num_windows, window=window, columns=columns or {})


def proof_text(data: Path | None, columns: Mapping[str, str] | None, progress: Progress) -> str:
    """The user's text, or the packaged sentences, which is said."""
    from bench.language.windows import read_text
    from edgesmith.tasks.base import sample_texts

    if data is not None:
        return read_text(data, (columns or {}).get("text", "text"))
    progress.note("measured on packaged English sentences; give --data for text of your own")
    return "\n".join(sample_texts())


@contextmanager
def proof_texts(data: Path | None, columns: Mapping[str, str] | None, progress: Progress) -> Iterator[Texts]:
    """Windows of the user's text, or of the packaged sentences, which is said."""
    if data is not None:
        yield named_texts(data, num_windows=64, columns=columns)
        return
    with TemporaryDirectory(prefix="edgesmith-") as temporary:
        path = Path(temporary) / "sentences.txt"
        path.write_text(proof_text(None, None, progress), encoding="utf-8")
        yield named_texts(path, num_windows=64, window=_SHORT_WINDOW)
