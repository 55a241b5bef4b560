"""Artifacts written down for other servers: what `edgesmith export --for` does."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from edgesmith.api.steps import options_of
from edgesmith.errors import UsageError
from edgesmith.progress import SILENT, Progress
from edgesmith.releases import locate_target

__all__ = ["export_for"]


def export_for(
    models: Sequence[str],
    *,
    server: str,
    out: Path,
    max_batch_size: int | None = None,
    max_queue_delay_us: int | None = None,
    instances: int | None = None,
    image: str | None = None,
    storage_uri: str | None = None,
    threads: int | None = None,
    progress: Progress = SILENT,
) -> dict[str, Any]:
    """Write artifacts down for another server; nothing appears at `out` that differs from what they are.

    Args:
        models: Each `NAME=PATH`, `NAME:VERSION=PATH` or a path; of a release the target of that name, or the only one.
        server: `triton` writes a model repository, `kserve` a file of manifests for our own server on Kubernetes.
        out: Folder, or for kserve a .yaml file.
        max_batch_size: triton: rows that are run together; 32 if left out.
        max_queue_delay_us: triton: how long a batch waits for more, in microseconds; 0 if left out.
        instances: triton: copies of each model that run at a time; 1 if left out.
        image: kserve: the container image that our server is in.
        storage_uri: kserve: where the artifacts will lie; `{name}` and `{version}` in it are the model's.
        threads: Of a run; if left out, all of the host's cores with triton, and 1 with kserve.
        progress: Shows how far it is.

    Returns:
        What was written, JSON-able.

    Raises:
        UsageError: an option is unknown, missing, or of another server, or something else is at `out`.
        UnsupportedError: the server has nothing that runs an artifact.
        ArtifactError: an artifact is damaged, was altered, or fails its own golden vectors.
        VerificationError: what was written differs from the artifact or from what our own server says.
    """
    from serve.arguments import parse_model
    from serve.config import ModelSpec

    given: dict[str, dict[str, Any]] = {
        "triton": {
            "max_batch_size": max_batch_size,
            "max_queue_delay_us": max_queue_delay_us,
            "instances": instances,
        },
        "kserve": {"image": image, "storage_uri": storage_uri},
    }
    server = server.lower()
    options = options_of("--for", server, given)
    specs: dict[tuple[str, str], ModelSpec] = {}
    for text in models:
        name, version, path = parse_model(text)
        if (name, version) in specs:
            raise UsageError(f"{name}:{version} is given twice", mend=f"Give the second one a version: {name}:2=PATH.")
        spec = ModelSpec(
            name=name,
            version=version,
            path=locate_target(path, name),
            max_batch_size=options.get("max_batch_size"),
            max_queue_delay_us=options.get("max_queue_delay_us", 0),
        )
        specs[name, version] = spec
    if server == "kserve":
        from export.serving.kserve import write_kserve

        return write_kserve(
            list(specs.values()), out, image=image, storage_uri=storage_uri, threads=threads or 1
        ).to_json()
    from export.serving.triton import write_triton

    made = write_triton(
        list(specs.values()), out, threads=threads or 0, num_instances=instances or 1, progress=progress
    )
    return made.to_json()
