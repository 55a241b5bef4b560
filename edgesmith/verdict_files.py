"""Where verdicts are written for a build server: JUnit XML, a step summary, a comment."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.gates.verdict import Verdict

__all__ = ["VerdictFiles"]


@dataclass(frozen=True, kw_only=True)
class VerdictFiles:
    """Files to write verdicts to, each optional."""

    junit: Path | None = None
    """JUnit XML, which every build server reads."""
    summary: Path | None = None
    """Markdown for a job's summary page."""
    comment: Path | None = None
    """Markdown for a comment on a pull request."""

    def write(self, verdicts: Sequence[Verdict], *, title: str) -> None:
        """Write those that are asked for.

        Raises:
            StorageError: a file cannot be written.
        """
        from bench.gates.ci import write_comment, write_junit, write_summary

        if self.junit is not None:
            write_junit(self.junit, verdicts, suite=title)
        if self.summary is not None:
            # A step summary of GitHub's belongs to several commands: each adds to it.
            is_shared = os.fspath(self.summary) == os.environ.get("GITHUB_STEP_SUMMARY")
            write_summary(self.summary, verdicts, title=title, append=is_shared)
        if self.comment is not None:
            write_comment(self.comment, verdicts, title=title)
