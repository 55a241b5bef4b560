"""What is known of the models that are served, from their manifests and settings, as the page shows it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgesmith.tasks import TEXT_GENERATION

if TYPE_CHECKING:
    from edgesmith.artifact import TensorSpec
    from serve.models.repository import IndexEntry, Model
    from serve.service import Service

__all__ = ["list_models"]

_DATATYPES = {
    "bool": "BOOL",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
    "string": "BYTES",
    "object": "BYTES",
} | {f"{sign}int{bits}": f"{sign.upper()}INT{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def list_models(service: Service) -> list[dict[str, Any]]:
    """Describe every version of every model; JSON-able.

    Each has `name`, `version`, `state` and `reason`; one that answers has what its artifact is and how it runs, and
    the verdicts of its release's gates where there are some.
    """
    return [_describe(service, entry) for entry in service.repository.index()]


def _describe(service: Service, entry: IndexEntry) -> dict[str, Any]:
    said: dict[str, Any] = {
        "name": entry.name,
        "version": entry.version,
        "state": entry.state,
        "reason": entry.reason,
    }
    if entry.state == "READY":
        said |= _model(service.repository.get(entry.name, entry.version))
        said |= _loading(service, entry)
        if (verdicts := service.verdicts(entry.name, entry.version)) is not None:
            said["verdicts"] = verdicts
    return said


def _model(model: Model) -> dict[str, Any]:
    artifact, manifest = model.artifact, model.artifact.manifest
    signature = getattr(model, "signature", None)
    task = getattr(model, "task", None)
    said: dict[str, Any] = {
        "digest": artifact.digest,
        "kind": manifest.kind,
        "task": manifest.task or (TEXT_GENERATION if signature is None else None),
        "precision": manifest.precision,
        "size_bytes": artifact.size_bytes,
        "model_bytes": artifact.model_bytes,
        "engine": model.engine_name,
        "step": manifest.step,
        "options": manifest.options,
        "tools": manifest.tools,
        "parents": [{"role": one.role, "digest": one.digest} for one in manifest.parents],
        "is_language_model": signature is None,
        "has_task": task is not None,
        "labels": list(getattr(task, "labels", getattr(task, "tags", ()))),
    }
    if model.spec.threads is not None:
        said["threads"] = model.spec.threads
    for name in ("max_batch_size", "context_length", "num_slots", "can_generate", "can_embed"):
        if (value := getattr(model, name, None)) is not None:
            said[name] = value
    if signature is not None:
        said["inputs"] = [_tensor(one) for one in signature.inputs]
        said["outputs"] = [_tensor(one) for one in signature.outputs]
    return said


def _loading(service: Service, entry: IndexEntry) -> dict[str, Any]:
    report = service.repository.report(entry.name, entry.version)
    return {} if report is None else {"loading_ms": report.phases_ms, "golden": report.golden}


def _tensor(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": _DATATYPES.get(spec.dtype, spec.dtype), "shape": list(spec.shape)}
