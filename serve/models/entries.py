"""What a repository keeps of each version of each model, and what an order to load one means."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from serve.config import ModelSpec
from serve.errors import ModelNotFoundError
from serve.models.catalog import find_versions, natural_key
from serve.models.loading import Loaded

__all__ = ["Entry", "IndexEntry", "State", "describe_entry", "no_such_model", "wanted_specs"]

State = Literal["LOADING", "READY", "UNLOADING", "UNAVAILABLE"]
"""As the Open Inference Protocol's repository index names them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """What is known of one version of one model.

    Attributes:
        state: Whether it answers.
        reason: Why it does not, or why the last attempt to replace it failed; empty if there is nothing to say.
    """

    name: str
    version: str
    state: State
    reason: str = ""


@dataclass(slots=True, eq=False)
class Entry:
    """One version of one model.

    Attributes:
        spec: Of what answers, or of what was last to.
        loaded: Set exactly while it answers.
        is_out: It was unloaded by order, and not asked for since.
        num_unloads: Tells a load that the model was unloaded since it was asked for.
        closing: The end of the model that was replaced or unloaded last.
    """

    spec: ModelSpec
    state: State = "LOADING"
    reason: str = ""
    loaded: Loaded | None = None
    is_out: bool = False
    num_unloads: int = 0
    closing: asyncio.Task[None] | None = None


def describe_entry(entry: Entry) -> IndexEntry:
    """The entry as the index has it."""
    state, reason = entry.state, entry.reason
    child = entry.loaded.child if entry.loaded is not None else None
    if child is not None and child.process.pid is None:
        state, reason = "UNAVAILABLE", "the process of its engine has ended and is being started again"
    return IndexEntry(name=entry.spec.name, version=entry.spec.version, state=state, reason=reason)


def no_such_model(name: str, version: str | None, known: Mapping[str, Mapping[str, Entry]]) -> ModelNotFoundError:
    """The error for a name or version that there is not."""
    if versions := known.get(name):
        mend = f"It has {', '.join(sorted(versions, key=natural_key)[:20])}."
        return ModelNotFoundError(f"the model {name} has no version {version!r:.140}", mend=mend)
    names = sorted((one for one, versions in known.items() if versions), key=natural_key)
    return ModelNotFoundError(
        f"there is no model {name!r:.140}", mend=f"There is {', '.join(names[:20]) or 'none at all'}."
    )


def wanted_specs(
    known: Mapping[str, Entry], catalog: Path | None, name: str, version: str | None, path: Path | None
) -> list[ModelSpec]:
    """What is to be loaded when a name is; empty if there is nothing of that name and version.

    Settings of a version that is not known yet are those of the newest that is.

    Args:
        known: The versions that the repository has of this name.
        catalog: The folder of models that can be loaded by name.
        name: The model.
        version: By default every version that was not unloaded (all, if all were), and the newest in the catalog; with
            a path, the newest.
        path: An artifact that is to be this version from now on.

    Raises:
        UsageError: The name or version is no name.
    """
    newest = known[max(known, key=natural_key)].spec if known else None
    if path is not None:
        chosen = version or (newest.version if newest is not None else "1")
        base = known[chosen].spec if chosen in known else newest
        return [_based_on(base, name, chosen, path)]
    found = find_versions(catalog, name) if catalog is not None else {}
    if version is not None:
        chosen_versions = {version} & (known.keys() | found.keys())
    else:
        in_use = {one for one, entry in known.items() if not entry.is_out}
        chosen_versions = (in_use or set(known)) | set(list(found)[-1:])
    return [
        known[one].spec if one in known else _based_on(newest, name, one, found[one])
        for one in sorted(chosen_versions, key=natural_key)
    ]


def _based_on(base: ModelSpec | None, name: str, version: str, path: Path) -> ModelSpec:
    if base is None:
        return ModelSpec(name=name, version=version, path=path)
    return replace(base, version=version, path=path)
