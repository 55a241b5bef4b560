"""What `export --for` adds to `export`: which options go together, and what is shown of the result."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgesmith.errors import UsageError

__all__ = ["refuse_given", "show_exported"]


def refuse_given(options: Mapping[str, object], what: str, mend: str) -> None:
    """Refuse options that mean nothing to what is asked for.

    Args:
        options: Name → value; None for one that was not given.
        what: What they mean nothing to.
        mend: What to do instead.

    Raises:
        UsageError: One was given.
    """
    for name, value in options.items():
        if value is not None and value != []:
            raise UsageError(f"--{name.replace('_', '-')} means nothing to {what}", mend=mend)


def show_exported(made: Mapping[str, Any], json: bool) -> None:
    """Show what was written for another server."""
    from edgesmith import console
    from edgesmith.units import format_bytes

    if json:
        console.print_json(dict(made))
        return
    facts = {
        name: format_bytes(value) if name == "size_bytes" else ", ".join(value) if isinstance(value, tuple) else value
        for name, value in made.items()
        if name != "notes"
    }
    console.print_facts({name.removesuffix("_bytes"): str(value) for name, value in facts.items()})
    for note in made.get("notes", ()):
        console.say(f"note: {note}")
