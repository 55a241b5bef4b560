"""What our own server says of an artifact: what another server has to say of it too."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from edgesmith.artifact import Artifact, Signature
from edgesmith.errors import UnsupportedError
from serve.config import ModelSpec, ServerConfig

__all__ = ["ServedModel", "ask_server"]


@dataclass(frozen=True, kw_only=True)
class ServedModel:
    """A graph as our server serves it.

    Attributes:
        spec: How it is served.
        artifact: What is served; its golden vectors have been run.
        signature: What the engine takes and gives.
        metadata: The answer of `/v2/models/NAME/versions/VERSION`.
        config: The answer of `/v2/models/NAME/versions/VERSION/config`.
        has_rows: Whether requests may share a run, one axis of rows before all others.
        is_text: Whether its task takes texts, so that whoever asks another server has to make the tokens.
        labels: Of its classes; none for other models.
        batch_effect: See `serve.models.warm_up.WarmUp`.
    """

    spec: ModelSpec
    artifact: Artifact
    signature: Signature
    metadata: dict[str, Any] = field(repr=False)
    config: dict[str, Any] = field(repr=False)
    has_rows: bool
    is_text: bool
    labels: tuple[str, ...]
    batch_effect: float


def ask_server(specs: Sequence[ModelSpec]) -> list[ServedModel]:
    """Load models as the server does, with golden vectors and warm-up, and ask what it says of them.

    Raises:
        ArtifactError: One is damaged, was altered, or fails its own golden vectors.
        UnsupportedError: One is no graph.
        MissingExtraError: ONNX Runtime is not installed.
    """
    with ThreadPoolExecutor(1) as pool:  # a loop of its own, also where the caller's thread runs one, as notebooks do
        return pool.submit(lambda: asyncio.run(_ask(specs))).result()


async def _ask(specs: Sequence[ModelSpec]) -> list[ServedModel]:
    from serve.metrics import Metrics
    from serve.models.repository import Repository
    from serve.service import Service
    from serve.traffic import Traffic

    config = ServerConfig(models=tuple(specs), has_page=False)
    repository = Repository(config, loop=asyncio.get_running_loop())
    service = Service(config, repository, Metrics(repository), Traffic())
    try:
        await repository.start()
        return [_describe(service, spec) for spec in specs]
    finally:
        await repository.close(30.0)


def _describe(service: Any, spec: ModelSpec) -> ServedModel:
    from edgesmith.tasks.text_task import TextTask
    from serve.models.graph_model import GraphModel
    from serve.protocols.oip.facts import model_config, model_metadata

    model = service.model(spec.name, spec.version)
    if not isinstance(model, GraphModel):
        raise UnsupportedError(f"{spec.path}: is a language model, no graph")
    return ServedModel(
        spec=spec,
        artifact=model.artifact,
        signature=model.signature,
        metadata=model_metadata(service, spec.name, spec.version),
        config=model_config(service, spec.name, spec.version),
        has_rows=model.layout.rows == "shared",
        is_text=isinstance(model.task, TextTask),
        labels=tuple(getattr(model.task, "labels", ())),
        batch_effect=model.warm.batch_effect,
    )
