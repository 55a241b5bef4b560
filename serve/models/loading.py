"""Make a model that can answer out of what a specification names: checked, opened, compared and warmed up."""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias, cast

from edgesmith.artifact import SIDE_FILES, Artifact, open_artifact
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from edgesmith.files import storage_errors
from edgesmith.tasks import TASKS, Task, load_task
from serve.config import ModelSpec
from serve.drift.reference import Reference, read_reference
from serve.models.warm_up import ROUNDING
from serve.runtime import Engine, EngineOptions, choose_threads, open_engine, open_generation_engine
from serve.runtime.child import GENERATING_KINDS
from serve.runtime.child_engine import ChildEngine, ChildGenerator, open_child
from serve.runtime.child_process import ChildSettings
from serve.runtime.generation import GenerationEngine
from serve.runtime.golden import check_golden
from serve.runtime.golden_generation import check_golden_generation

if TYPE_CHECKING:
    from serve.models.graph_model import GraphModel
    from serve.models.text_model import TextModel

    Model: TypeAlias = GraphModel | TextModel

__all__ = ["LoadReport", "Loaded", "load_model"]

_LOG = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class LoadReport:
    """How loading went.

    Attributes:
        phases_ms: Milliseconds of each phase: `hashes`, `open`, `task`, `golden`, `warm-up`. Of an engine in a process
            of its own, `hashes` is part of `open`.
        golden: What the golden vectors said, in words.
        is_golden_passed: None if the artifact has none.
        batching: How far an answer depends on its batch, in words; empty if not at all.
    """

    phases_ms: dict[str, float] = field(default_factory=dict)
    golden: str = "has no golden vectors"
    is_golden_passed: bool | None = None
    batching: str = ""

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Time the block as that phase."""
        began = time.perf_counter_ns()
        try:
            yield
        finally:
            self.phases_ms[name] = self.phases_ms.get(name, 0.0) + (time.perf_counter_ns() - began) / 1e6

    def __str__(self) -> str:
        phases = ", ".join(f"{name} {duration_ms:.0f} ms" for name, duration_ms in self.phases_ms.items())
        return f"{phases}; {self.golden}" + (f"; {self.batching}" if self.batching else "")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A model that can answer.

    Attributes:
        child: Its engine, where that is in a process of its own.
        reference: What its requests are compared with; None if the artifact has none.
    """

    model: Model
    report: LoadReport
    child: ChildEngine | ChildGenerator | None
    reference: Reference | None = None


def load_model(spec: ModelSpec, path: Path, *, loop: asyncio.AbstractEventLoop) -> Loaded:
    """Load a model; takes seconds, and is for any thread but the loop's.

    Files are hashed, then opened by native code, by name. In between somebody could have replaced them: their states
    are compared from before the first hash to after the last opening, and a change is an error. Handing the hashed
    bytes over instead would need each model twice in memory, and llama.cpp takes no bytes at all.

    Args:
        spec: What to load, and how it is run.
        path: The artifact, where the specification's path is a release or the like.
        loop: That the model's jobs are told on.

    Raises:
        EdgesmithError: It cannot be opened, fails its golden vectors or its warm-up.
    """
    report = LoadReport()
    before = _file_states(path)
    artifact, engine = _open(spec, path, report)
    try:
        with report.phase("task"):
            is_text = artifact.kind in GENERATING_KINDS
            task = None if is_text else _find_task(artifact, cast(Engine, engine))
            reference = None if is_text else read_reference(artifact)
        _check_unchanged(path, before)
        with report.phase("golden"):
            _check_golden(spec, artifact, engine, report)
        with report.phase("warm-up"):
            model = _make_model(spec, artifact, engine, task, loop)
        report.batching = _describe_batching(model)
    except BaseException:
        engine.close()
        raise
    child = engine if isinstance(engine, ChildEngine | ChildGenerator) else None
    return Loaded(model, report, child, reference)


def _open(spec: ModelSpec, path: Path, report: LoadReport) -> tuple[Artifact, Engine | GenerationEngine]:
    if spec.is_isolated:
        with report.phase("open"):
            settings = ChildSettings(timeout_s=spec.engine_timeout_s)
            child = open_child(path, _options(spec), label=f"{spec.name} {spec.version}", settings=settings)
            return child.artifact, child
    with report.phase("hashes"):
        artifact = open_artifact(path)
    with report.phase("open"):
        if artifact.kind == "gguf":  # whose texts share a room, which the model's writer measures out
            return artifact, open_generation_engine(artifact, replace(_options(spec), num_context=None))
        if artifact.kind in GENERATING_KINDS:
            return artifact, open_generation_engine(artifact, _options(spec))
        return artifact, open_engine(artifact, _options(spec))


def _options(spec: ModelSpec) -> EngineOptions:
    threads = spec.threads or choose_threads()
    return EngineOptions(threads=threads, adapters=spec.adapters, num_context=spec.num_context)


def _find_task(artifact: Artifact, engine: Engine) -> Task | None:
    """The artifact's task; None if it has none, and then tensors are all that it takes.

    Raises:
        EdgesmithError: The artifact says that it has one, but that cannot be loaded.
    """
    names = {entry.path for entry in artifact.manifest.files}
    if "task.json" in names or artifact.manifest.task in TASKS:
        return load_task(artifact.folder, artifact.manifest.task)
    if "config.json" not in names:
        return None
    try:
        task = load_task(artifact.folder)
    except (ArtifactError, UnsupportedError, UsageError) as error:
        _LOG.info("%s: takes tensors alone: %s", artifact.path, error)
        return None
    takes = {spec.name for spec in engine.signature.inputs}
    return task if takes == set(task.input_names) else None


def _check_golden(spec: ModelSpec, artifact: Artifact, engine: Engine | GenerationEngine, report: LoadReport) -> None:
    """Compare the engine with the artifact's golden vectors.

    Raises:
        ArtifactError: It gives something else, or the vectors are damaged.
    """
    if artifact.kind in GENERATING_KINDS:
        answer = check_golden_generation(artifact, cast(GenerationEngine, engine))
        if answer is None:
            return
        is_passed, reason = answer.passed, answer.reason
        figures = f"{answer.num_agreeing} of {answer.num_tokens} golden tokens agree"
    else:
        check = check_golden(artifact, cast(Engine, engine))
        if check is None:
            return
        is_passed, reason = check.passed, check.reason
        figures = (
            f"{check.num_rows} golden rows, off by {check.max_abs_difference:.3g} of {check.tolerance:.3g} allowed"
        )
    report.is_golden_passed = is_passed
    report.golden = figures + (f": {reason}" if reason else "")
    if is_passed:
        return
    if not spec.allow_golden_mismatch:
        raise ArtifactError(
            f"{artifact.path}: does not give its own golden vectors with {engine.name}: {report.golden}",
            mend="Export it again with this machine's engine, or allow the mismatch if you know where it comes from.",
        )
    _LOG.warning("%s: is served although it does not give its own golden vectors: %s", artifact.path, report.golden)


def _make_model(
    spec: ModelSpec,
    artifact: Artifact,
    engine: Engine | GenerationEngine,
    task: Task | None,
    loop: asyncio.AbstractEventLoop,
) -> Model:
    if artifact.kind in GENERATING_KINDS:
        from serve.models.text_model import TextModel

        return TextModel(spec, artifact, loop=loop, engine=cast(GenerationEngine, engine))
    from serve.models.graph_model import GraphModel

    return GraphModel(spec, artifact, cast(Engine, engine), loop=loop, task=task)


def _describe_batching(model: Model) -> str:
    warm = getattr(model, "warm", None)  # of a graph
    if warm is None or warm.limits.max_rows == 1 or max(warm.batch_effect, warm.padding_effect) <= ROUNDING:
        return ""
    return (
        f"an answer depends on its batch: other rows move it by up to {warm.batch_effect:.2g} of the largest output, "
        f"padding by {warm.padding_effect:.2g}; max_batch_size 1 leaves every row alone"
    )


_State: TypeAlias = tuple[int, int, int, int, int]


def _file_states(path: Path) -> dict[Path, _State]:
    """Device, inode, size, and times of change of every file that opening `path` may read."""
    with storage_errors(path):
        if path.is_dir():
            files = [Path(parent, name) for parent, _, names in os.walk(path) for name in names]
        else:
            files = [path, *(path.with_name(name) for name in (f"{path.name}.data", *SIDE_FILES))]
        return {file: _state(file) for file in files if file.exists()}


def _state(file: Path) -> _State:
    # Unlike the time of modification, nobody can set the time of change (ctime) back.
    state = file.stat()
    return state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns


def _check_unchanged(path: Path, before: dict[Path, _State]) -> None:
    after = _file_states(path)
    for file in sorted(before.keys() | after.keys()):
        if before.get(file) != after.get(file):
            raise ArtifactError(
                f"{file}: was changed while the model was being opened",
                mend="Load it again, and replace models by renaming a finished folder, not by writing into one.",
            )
