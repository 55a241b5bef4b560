"""KServe manifests: our own server as a ServingRuntime, and an InferenceService a model.

The image is the user's: one with `serve` and the libraries of the artifact's kind, such as a bundle's. The artifact
stays what it is, a folder that lies where `storageUri` says, and is checked against its manifest by the server itself.

Source: kserve/kserve, config/crd/full/serving.kserve.io_servingruntimes.yaml and …_inferenceservices.yaml;
kserve.github.io, "Serving Runtime" ({{.Name}} is the InferenceService's name) and "Open Inference Protocol".
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml

from edgesmith import __version__
from edgesmith.artifact import Artifact, open_artifact
from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.files import atomic_write, storage_errors
from serve.config import ModelSpec

__all__ = ["KINDS", "KserveManifests", "make_manifests", "write_kserve"]

KINDS = ("onnx", "gguf", "genai")
_PORT = 8080
_USER = 65532  # no name of an image's user can be checked to be another than root's
_DRAIN_S = 30
_NAME = re.compile(r"[a-z]([a-z0-9-]{0,51}[a-z0-9])?")  # with `-predictor` behind it a DNS label
_BASE_MIB = 256
_HEAD = """# {names} on KServe: a ServingRuntime of edgesmith's server, and an InferenceService a model.
# Put each artifact's whole folder, manifest.json included, where its storageUri says, then: kubectl apply -f {file}
# The image needs `serve` and its libraries: that of a bundle will do, see examples/serve/Containerfile.
# Made by edgesmith {version}.
"""


@dataclass(frozen=True, kw_only=True)
class KserveManifests:
    """What was written.

    Attributes:
        path: The file.
        runtimes: Names of the ServingRuntimes.
        services: Names of the InferenceServices.
    """

    path: Path
    runtimes: tuple[str, ...]
    services: tuple[str, ...]

    def to_json(self) -> dict[str, object]:
        """JSON-able form."""
        return {**asdict(self), "path": str(self.path)}


def write_kserve(
    specs: Sequence[ModelSpec], out: Path, *, image: str | None, storage_uri: str | None, threads: int = 1
) -> KserveManifests:
    """Write the manifests of models into one file.

    Args:
        specs: The models; their names become those of the services.
        out: A file that ends with .yaml or .yml; one that is there already is replaced.
        image: Of the server.
        storage_uri: Where the artifacts will lie; `{name}` and `{version}` in it are the model's.
        threads: Cores that each replica gets.

    Raises:
        UsageError: There is no image or place, `out` is called otherwise, or a name is none that Kubernetes takes.
        UnsupportedError: An artifact that our server does not serve from a folder.
        ArtifactError: An artifact is damaged or was altered.
    """
    if out.suffix not in (".yaml", ".yml"):
        raise UsageError(f"{out}: the manifests are one YAML file", mend=f"Call it, for instance, {out}.yaml.")
    documents = make_manifests(specs, image=image, storage_uri=storage_uri, threads=threads)
    named = [(one["kind"], one["metadata"]["name"]) for one in documents]
    head = _HEAD.format(names=", ".join(spec.name for spec in specs), file=out.name, version=__version__)
    text = head + "---\n".join(yaml.safe_dump(one, sort_keys=False, allow_unicode=True) for one in documents)
    with storage_errors(out):
        out.parent.mkdir(parents=True, exist_ok=True)
    atomic_write(out, text)
    return KserveManifests(
        path=out,
        runtimes=tuple(name for kind, name in named if kind == "ServingRuntime"),
        services=tuple(name for kind, name in named if kind == "InferenceService"),
    )


def make_manifests(
    specs: Sequence[ModelSpec], *, image: str | None, storage_uri: str | None, threads: int = 1
) -> list[dict[str, Any]]:
    """Make the documents: a ServingRuntime for each kind of artifact, then an InferenceService for each model.

    Raises:
        UsageError: See `write_kserve`.
        UnsupportedError: See `write_kserve`.
        ArtifactError: See `write_kserve`.
    """
    if image is None:
        raise UsageError(
            "no image is named that the server is in",
            mend="Build one of a bundle, see examples/serve/Containerfile, and name it: --image REGISTRY/NAME:TAG.",
        )
    if storage_uri is None:
        raise UsageError(
            "no place is named that the cluster gets the artifact from",
            mend="Name it: --storage-uri s3://BUCKET/PATH, gs://BUCKET/PATH or pvc://CLAIM/PATH.",
        )
    if len(specs) > 1 and "{name}" not in storage_uri:
        raise UsageError(
            f"--storage-uri {storage_uri} is one place for {len(specs)} models",
            mend="Put {name} in it, such as s3://models/{name}.",
        )
    _check_names(specs)
    artifacts = [_open(spec) for spec in specs]
    kinds = sorted({artifact.kind for artifact in artifacts})
    services = [_service(*both, storage_uri, threads) for both in zip(specs, artifacts, strict=True)]
    return [*(_runtime(kind, image) for kind in kinds), *services]


def _check_names(specs: Sequence[ModelSpec]) -> None:
    names = [spec.name for spec in specs]
    for name in names:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"{name!r} cannot be the name of an InferenceService",
                mend="Give it one of at most 53 small letters, digits and '-', a letter first: NAME=PATH.",
            )
        if names.count(name) > 1:
            raise UsageError(
                f"{name} is given twice: an InferenceService has one version, and KServe rolls out the next itself",
                mend=f"Give one of them another name: {name}-2=PATH.",
            )


def _open(spec: ModelSpec) -> Artifact:
    artifact = open_artifact(spec.path)
    if artifact.kind not in KINDS:
        raise UnsupportedError(
            f"{spec.name}: {artifact.path} is of kind {artifact.kind!r}; our server serves {', '.join(KINDS)}"
        )
    if artifact.path.is_file():
        raise UnsupportedError(
            f"{spec.name}: {artifact.path} is a bare file, and KServe gives a server a folder",
            mend="Give an artifact's folder, which has a manifest.json.",
        )
    return artifact


def _runtime(kind: str, image: str) -> dict[str, Any]:
    probe = {"periodSeconds": 5, "timeoutSeconds": 2, "failureThreshold": 3}
    live = {"httpGet": {"path": "/v2/health/live", "port": _PORT}}
    ready = {"httpGet": {"path": "/v2/health/ready", "port": _PORT}}
    container = {
        "name": "kserve-container",
        "image": image,
        "command": ["python", "-m", "serve"],
        "args": ["{{.Name}}=/mnt/models", "--host", "0.0.0.0", "--port", str(_PORT), "--drain", str(_DRAIN_S)],  # noqa: S104
        "env": [{"name": "PYTHONDONTWRITEBYTECODE", "value": "1"}],
        "ports": [{"containerPort": _PORT, "protocol": "TCP"}],
        "readinessProbe": ready | probe,
        "livenessProbe": live | probe | {"periodSeconds": 10},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
            "privileged": False,
            "readOnlyRootFilesystem": True,
            "runAsNonRoot": True,
            "runAsUser": _USER,
            "runAsGroup": _USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "volumeMounts": [{"name": "scratch", "mountPath": "/tmp"}],  # noqa: S108  a folder of the container's own
    }
    return {
        "apiVersion": "serving.kserve.io/v1alpha1",
        "kind": "ServingRuntime",
        "metadata": {"name": f"edgesmith-{kind}"},
        "spec": {
            "annotations": {"prometheus.kserve.io/port": str(_PORT), "prometheus.kserve.io/path": "/metrics"},
            # Only who names this runtime gets it: others may serve the same formats.
            "supportedModelFormats": [{"name": kind, "version": "1", "autoSelect": False}],
            "protocolVersions": ["v2"],
            "containers": [container],
            "volumes": [{"name": "scratch", "emptyDir": {}}],
        },
    }


def _service(spec: ModelSpec, artifact: Artifact, storage_uri: str, threads: int) -> dict[str, Any]:
    place = storage_uri.replace("{name}", spec.name).replace("{version}", spec.version)
    # Weights, once more for what the engine packs, and the interpreter with its libraries.
    memory_mib = math.ceil((_BASE_MIB + 2 * artifact.model_bytes / (1 << 20)) / 64) * 64
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {
            "name": spec.name,
            "annotations": {"edgesmith/digest": artifact.digest, "edgesmith/version": spec.version},
        },
        "spec": {
            "predictor": {
                "terminationGracePeriodSeconds": _DRAIN_S + 15,
                "model": {
                    "modelFormat": {"name": artifact.kind, "version": "1"},
                    "runtime": f"edgesmith-{artifact.kind}",
                    "protocolVersion": "v2",
                    "storageUri": place,
                    "resources": {
                        "requests": {"cpu": str(threads), "memory": f"{memory_mib}Mi"},
                        "limits": {"cpu": str(threads), "memory": f"{2 * memory_mib}Mi"},
                    },
                },
            }
        },
    }
