"""What an artifact was made from, and what each step on its checkpoint did."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from edgesmith.artifact import Artifact
from edgesmith.releases import Ancestor, ModelStep
from edgesmith.step_facts import CHECKPOINT_STEPS, read_facts

if TYPE_CHECKING:
    from edgesmith.pipeline import Made, TargetResult

__all__ = ["quantization_notes", "trace_lineage", "trace_steps"]


def trace_steps(chain: Sequence[Artifact | None]) -> tuple[ModelStep, ...]:
    """Tell what became of the checkpoint, from its first form to what is exported.

    Args:
        chain: All checkpoints in the order they were made.

    Returns:
        One for each; nothing where there was no step.

    Raises:
        CheckpointError: weights are damaged.
    """
    artifacts = [one for one in chain if one is not None]
    if not any(one.kind == "checkpoint" and one.manifest.step in CHECKPOINT_STEPS for one in artifacts):
        return ()
    facts = [read_facts(one)[0] for one in artifacts]
    params = [one.params[1] if one else None for one in facts]
    macs = [one.macs[1] if one else None for one in facts]
    macs_of = [one.macs_of if one else "" for one in facts]
    for index, after in enumerate(facts[1:]):
        if after is not None and _is_parent(artifacts[index], artifacts[index + 1]):
            params[index] = params[index] or after.params[0]
            if macs[index] is None and after.macs[0] is not None:
                macs[index], macs_of[index] = after.macs[0], after.macs_of
    sizes = [_measure(one) for one in artifacts]
    counted = [known or size[0] for known, size in zip(params, sizes, strict=True)]
    for index, (before, now) in enumerate(pairwise(artifacts), start=1):
        # Training changes no shapes, so what it started from costs the same.
        if now.manifest.step == "distill" and _is_parent(before, now) and counted[index] == counted[index - 1]:
            macs[index], macs_of[index] = macs[index - 1], macs_of[index - 1]
    return tuple(
        ModelStep(
            name=artifact.manifest.step,
            digest=artifact.digest,
            summary=one.summary if one else "",
            num_parameters=counted[index],
            weights_bytes=sizes[index][1],
            macs=macs[index],
            macs_of=macs_of[index],
            notes=one.notes if one else (),
            curve=one.curve if one else None,
        )
        for index, (artifact, one) in enumerate(zip(artifacts, facts, strict=True))
    )


def _is_parent(before: Artifact, now: Artifact) -> bool:
    return before.digest in {parent.digest for parent in now.manifest.parents}


def _measure(checkpoint: Artifact) -> tuple[int, int]:
    """Values and bytes of all tensors, as stored."""
    from compress.checkpoint import open_checkpoint

    entries = open_checkpoint(checkpoint.folder).entries.values()
    return sum(math.prod(entry.shape) for entry in entries), sum(entry.size_bytes for entry in entries)


def trace_lineage(made: Made, target: TargetResult, steps: Sequence[ModelStep]) -> tuple[Ancestor, ...]:
    """The artifact, then what it was made from, the nearest first.

    Args:
        made: All that the run made.
        target: The artifact's.
        steps: From `trace_steps`.
    """
    found: dict[str, Ancestor] = {}
    roles: dict[str, str] = {}
    summaries = {step.digest: step.summary for step in steps}
    for artifact in (target.artifact, target.unquantized, *reversed(made.checkpoints.chain)):
        if artifact is None or artifact.digest in found:
            continue
        manifest = artifact.manifest
        found[artifact.digest] = Ancestor(
            role=roles.get(artifact.digest, target.name),
            digest=artifact.digest,
            step=manifest.step,
            detail=", ".join(text for text in (manifest.kind, manifest.precision) if text),
            summary=summaries.get(artifact.digest, ""),
            parents=tuple(parent.digest for parent in manifest.parents),
        )
        roles |= {parent.digest: parent.role for parent in manifest.parents}
    outside = (Ancestor(role=role, digest=digest) for digest, role in roles.items() if digest not in found)
    return (*found.values(), *outside)


def quantization_notes(artifact: Artifact) -> tuple[str, ...]:
    """What quantization left in float, by reason."""
    path = artifact.path / "quantization.json"
    if not path.is_file():
        return ()
    facts = json.loads(path.read_bytes())
    if artifact.kind == "gguf":
        return tuple(facts["notes"])
    reasons = Counter(node["reason"] for node in facts["in_float"])
    in_float = tuple(f"{count} layer(s) left in float: {reason}" for reason, count in reasons.most_common())
    return (f"{len(facts['quantized'])} layers are int8", *in_float)
