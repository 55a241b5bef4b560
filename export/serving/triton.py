"""A model repository of NVIDIA Triton: graphs, configurations that are proven to fit them, and how to run it.

Triton serves tensors. What turns texts into tensors lies beside each graph for the client, who encodes; a server that
takes texts is our own. See `triton_config` for what a configuration says.

Source: triton-inference-server/server, docs/user_guide/model_repository.md.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from edgesmith.artifact import SIDE_FILES, Artifact, open_artifact
from edgesmith.errors import UnsupportedError, UsageError, VerificationError
from edgesmith.files import publish_folder, sha256_file, storage_errors, temporary_sibling
from edgesmith.progress import SILENT, Progress
from export.serving.config_text import read_config_text, write_config_text
from export.serving.served import ServedModel, ask_server
from export.serving.triton_config import LABELS_FILE, check_parity, find_warm_up_fault, make_config, make_warm_up
from export.serving.triton_readme import write_readme, write_request
from serve.config import ModelSpec

__all__ = ["INDEX", "TritonRepository", "check_repository", "number_versions", "write_triton"]

INDEX = "repository.json"
_CONFIG = "config.pbtxt"
_VERSION = re.compile(r"[1-9][0-9]{0,17}")
_EFFECT = 1e-3  # of the largest output: above it, what else is in a batch is no rounding


@dataclass(frozen=True, kw_only=True)
class TritonRepository:
    """What was written.

    Attributes:
        path: The repository's folder.
        models: `NAME/VERSION` of each graph in it.
        size_bytes: Of all files.
        notes: What its user has to know.
    """

    path: Path
    models: tuple[str, ...]
    size_bytes: int
    notes: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """JSON-able form."""
        return {**asdict(self), "path": str(self.path)}


def write_triton(
    specs: Sequence[ModelSpec],
    out: Path,
    *,
    threads: int = 0,
    num_instances: int = 1,
    progress: Progress = SILENT,
) -> TritonRepository:
    """Write a model repository; nothing appears at `out` unless each configuration fits its graph and our own server.

    Args:
        specs: The models. `max_batch_size`, 32 if None, and `max_queue_delay_us` are those of Triton's batches.
        out: Folder to write; a repository that is there already is replaced.
        threads: Of a run; 0 leaves it to ONNX Runtime.
        num_instances: Copies of each model that run at a time.
        progress: Shows how far it is.

    Raises:
        UsageError: There is something else at `out`, or versions of a model differ in their tensors.
        UnsupportedError: Triton has no backend for an artifact.
        ArtifactError: An artifact is damaged, was altered, or fails its own golden vectors.
        VerificationError: A configuration, as it was read back, differs from what it describes.
    """
    if out.exists() and not (out / INDEX).is_file():
        raise UsageError(f"{out}: is there already and is no model repository", mend="Choose another name.")
    for spec in specs:
        _check_kind(spec, open_artifact(spec.path))
    numbered, notes = number_versions([replace(spec, max_batch_size=spec.max_batch_size or 32) for spec in specs])
    progress.note("asking our own server what it says of the models")
    served = ask_server(numbered)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = temporary_sibling(out)
        try:
            for versions in _by_name(served).values():
                notes += _write_model(temporary / versions[0].spec.name, versions, threads, num_instances)
            index = [_index_entry(one, spec.version) for one, spec in zip(served, specs, strict=True)]
            text = json.dumps({"schema_version": 1, "models": index}, indent=1, ensure_ascii=False)
            (temporary / INDEX).write_text(text + "\n")
            (temporary / "README.txt").write_text(write_readme(served, notes))
            check_repository(temporary, served)
            size_bytes = sum(path.stat().st_size for path in temporary.rglob("*") if path.is_file())
            publish_folder(temporary, out)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    models = tuple(f"{one.spec.name}/{one.spec.version}" for one in served)
    return TritonRepository(path=out, models=models, size_bytes=size_bytes, notes=tuple(notes))


def _check_kind(spec: ModelSpec, artifact: Artifact) -> None:
    if artifact.kind != "onnx":
        raise UnsupportedError(
            f"{spec.name}: {artifact.path} is of kind {artifact.kind!r}, for which Triton has no backend; it has one "
            "for onnx",
            mend="Serve it with our own server: `edgesmith serve`, or on Kubernetes `edgesmith export --for kserve`.",
        )


def number_versions(specs: Sequence[ModelSpec]) -> tuple[list[ModelSpec], list[str]]:
    """Give every model a version that Triton reads: a number from 1 without zeros before it.

    Returns:
        The models, and what was changed in words.
    """
    taken = {(spec.name, spec.version) for spec in specs if _VERSION.fullmatch(spec.version)}
    found, notes = [], []
    for spec in specs:
        version = spec.version
        if not _VERSION.fullmatch(version):
            numbers = [int(number) for name, number in taken if name == spec.name]
            version = str(max(numbers, default=0) + 1)
            taken.add((spec.name, version))
            notes.append(f"{spec.name}: the version {spec.version!r} is called {version}: Triton's are numbers")
        found.append(replace(spec, version=version))
    return found, notes


def _by_name(served: Sequence[ServedModel]) -> dict[str, list[ServedModel]]:
    """Name → versions, the newest last."""
    found: dict[str, list[ServedModel]] = {}
    for one in sorted(served, key=lambda one: int(one.spec.version)):
        found.setdefault(one.spec.name, []).append(one)
    return found


def _write_model(folder: Path, versions: Sequence[ServedModel], threads: int, num_instances: int) -> list[str]:
    """Write a model's folder; what is to be known of it."""
    newest = versions[-1]
    config = make_config(newest, threads=threads, num_instances=num_instances)
    for other in versions[:-1]:
        if make_config(other, threads=threads, num_instances=num_instances) != config or other.labels != newest.labels:
            raise UsageError(
                f"{newest.spec.name}: the versions {other.spec.version} and {newest.spec.version} differ in their "
                "tensors, batches or labels, and Triton has one configuration for all versions of a model",
                mend=f"Give one of them another name, such as {newest.spec.name}-{other.spec.version}=PATH.",
            )
    for one in versions:
        _copy_graph(one.artifact, folder / one.spec.version)
    warm_up, files = make_warm_up(newest, config)
    if warm_up:
        config["model_warmup"] = warm_up
        (folder / "warmup").mkdir()
        for name, content in files.items():
            (folder / "warmup" / name).write_bytes(content)
    if any("label_filename" in one for one in config["output"]):
        (folder / LABELS_FILE).write_text("".join(f"{label}\n" for label in newest.labels))
    write_request(newest, folder / "request.json")
    (folder / _CONFIG).write_text(write_config_text(config))
    return _notes(newest, config)


def _copy_graph(artifact: Artifact, folder: Path) -> None:
    """Copy the graph under the name that Triton looks for, its weights, and what makes its inputs."""
    from serve.runtime.onnx_engine import model_path

    folder.mkdir(parents=True)
    graph = model_path(artifact).relative_to(artifact.folder).as_posix()
    for entry in artifact.manifest.files:
        if entry.path == graph:
            shutil.copyfile(artifact.folder / graph, folder / "model.onnx")
        elif entry.path.endswith(".data") or entry.path in SIDE_FILES:
            (folder / entry.path).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.folder / entry.path, folder / entry.path)


def _notes(served: ServedModel, config: Mapping[str, Any]) -> list[str]:
    name, notes = served.spec.name, []
    if not config["max_batch_size"]:
        notes.append(f"{name}: not every tensor has an axis of rows and another one, so Triton forms no batches")
    elif served.batch_effect > _EFFECT and config["max_batch_size"] > 1:
        notes.append(
            f"{name}: the other rows of a batch move a row's outputs by up to {served.batch_effect:.1g} of the largest "
            "one, as its activations are quantized with one scale for the whole batch; --max-batch-size 1 keeps rows "
            "apart"
        )
    if served.is_text:
        notes.append(f"{name}: Triton joins only requests of equal lengths, so pad texts to a few lengths")
    return notes


def _index_entry(served: ServedModel, given: str) -> dict[str, str]:
    spec = served.spec
    return {"name": spec.name, "version": spec.version, "artifact_version": given, "digest": served.artifact.digest}


def check_repository(folder: Path, served: Sequence[ServedModel]) -> None:
    """Read a repository back and compare all of it with the artifacts and with our own server.

    Args:
        folder: The repository.
        served: The models that are in it, from `ask_server`.

    Raises:
        VerificationError: A file is missing or differs, or a configuration is not that of its graph.
        ArtifactError: A configuration is damaged.
    """
    for name, versions in _by_name(served).items():
        path = folder / name / _CONFIG
        with storage_errors(path):
            config = read_config_text(path.read_text(), str(path))
        numbers = sorted(one.name for one in (folder / name).iterdir() if one.is_dir() and one.name != "warmup")
        if numbers != sorted(one.spec.version for one in versions):
            raise VerificationError(f"{folder / name}: holds the versions {', '.join(numbers) or 'none'}")
        labels = _read_lines(folder / name / LABELS_FILE)
        for one in versions:
            check_parity(config, one, labels)
            _check_graph(folder / name / one.spec.version, one.artifact)
        if fault := find_warm_up_fault(folder / name / "warmup", config):
            raise VerificationError(f"{folder / name / 'warmup'}: {fault}", mend="Export it again.")


def _read_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1] if path.is_file() else []


def _check_graph(folder: Path, artifact: Artifact) -> None:
    from serve.runtime.onnx_engine import model_path

    graph = model_path(artifact).relative_to(artifact.folder).as_posix()
    for entry in artifact.manifest.files:
        if entry.path == graph or entry.path.endswith(".data"):
            copy = folder / ("model.onnx" if entry.path == graph else entry.path)
            if not copy.is_file() or sha256_file(copy) != entry.sha256:
                raise VerificationError(f"{copy}: is not the artifact's {entry.path}", mend="Export it again.")
