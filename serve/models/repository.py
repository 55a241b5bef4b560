"""The models that a server has: loaded, swapped while they answer, and unloaded."""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeAlias

from edgesmith.errors import EdgesmithError
from serve.config import ModelSpec, ServerConfig
from serve.errors import EngineFailedError, NotReadyError
from serve.models.catalog import natural_key
from serve.models.entries import Entry, IndexEntry, State, no_such_model, wanted_specs
from serve.models.loading import Loaded, load_model
from serve.models.memory import release_memory
from serve.models.register import Register
from serve.models.threads import in_thread

if TYPE_CHECKING:
    from serve.models.graph_model import GraphModel
    from serve.models.text_model import TextModel

    Model: TypeAlias = GraphModel | TextModel

__all__ = ["IndexEntry", "Observer", "Repository", "State"]

_LOG = logging.getLogger(__name__)
_LOADING_THREADS = 2
_PATIENCE_S = 120.0
_LAST_LOADS_S = 2.0  # for loads that are under way when the server stops: nobody wants them any more


class Observer(Protocol):
    """Who is told which models answer, on the loop's thread."""

    def published(self, loaded: Loaded) -> None:
        """It answers from now on; must not raise."""

    def withdrawn(self, model: Model) -> Callable[[], None] | None:
        """It gets no more requests; gives what is to be called, on another thread, when it is closed."""


class Repository(Register):
    """The models of a server. All methods are for the loop's thread; loading itself is done by threads of its own.

    The last order wins: a model that is unloaded while it is being loaded stays unloaded, and its load fails. Loads of
    one name are done one after the other. A model that is replaced finishes what it has been given, and only then is
    closed; the next load of its name waits for that, so there are hardly ever more than two of one in memory.

    Replace an artifact's folder by renaming a finished one, as `edgesmith` does: weights may be mapped into memory, so
    that whoever writes into a file changes the model that is running.

    Args:
        config: The models to begin with, and the folder of those that can be loaded by name.
        loop: That the server runs on.
        locate: Finds the artifact that a path means, by the path and the model's name, for paths that are none
            themselves, such as releases.

    Raises:
        UsageError: The configuration names a version of a model twice.

    Attributes:
        observer: Told which models answer; set it before `start`.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        loop: asyncio.AbstractEventLoop,
        locate: Callable[[Path, str], Path] | None = None,
    ) -> None:
        super().__init__(config)
        self._loop = loop
        self._locate = locate or (lambda path, _: path)
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._retiring: set[Model] = set()
        self._loading = asyncio.Semaphore(_LOADING_THREADS)
        self.observer: Observer | None = None
        self._is_closed = False
        self.num_loads = self.num_swaps = self.num_load_failures = 0

    async def start(self) -> None:
        """Load all models of the configuration; others are loaded even if one fails.

        Raises:
            EdgesmithError: Of the first one that failed; each is logged, and in the index.
        """
        await self._load_all([entry.spec for entry in self._all()])

    async def _load_all(self, specs: Iterable[ModelSpec]) -> None:
        """Load each of them, whatever becomes of the others or of who asked; raises what the first failure was."""
        loads = []
        for spec in specs:
            entry = self._entries.setdefault(spec.name, {}).setdefault(spec.version, Entry(spec))
            entry.is_out = False
            loads.append(self._run(self._load(spec, entry, entry.num_unloads)))
        ends = await asyncio.shield(asyncio.gather(*loads, return_exceptions=True))
        for end in ends:
            if end is not None:
                raise end

    async def load(self, name: str, version: str | None = None, path: Path | None = None) -> None:
        """Load a model, or load it again and replace it while it answers.

        Beside the one that answers, the new one is opened, its hashes checked, compared with its golden vectors and
        warmed up. If anything fails the old one stays.

        Args:
            name: Of a model that the server has, or of one in the repository's folder.
            version: By default every version that is in use, and the newest of the repository's folder; with a path,
                the newest.
            path: Another artifact for it.

        Raises:
            ModelNotFoundError: There is no such model or version.
            NotReadyError: It was unloaded meanwhile, or the server stops.
            EdgesmithError: Why it cannot be loaded.
        """
        if self._is_closed:
            raise NotReadyError("the server is being stopped")
        specs = wanted_specs(self._entries.get(name, {}), self._config.repository, name, version, path)
        if not specs:
            raise no_such_model(name, version, self._entries)
        await self._load_all(specs)

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Begin it as a task that is kept until it is done."""
        task = self._loop.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    async def _load(self, spec: ModelSpec, entry: Entry, num_unloads: int) -> None:
        async with self._locks[spec.name]:
            if entry.closing is not None:  # for a while: one that hangs must not keep out what replaces it
                await asyncio.wait([entry.closing], timeout=_PATIENCE_S)
            if entry.num_unloads != num_unloads:
                raise _unloaded(spec)
            if entry.loaded is None:
                entry.state, entry.reason = "LOADING", ""
            try:
                loaded = await self._open(spec)
            except EdgesmithError as error:
                self._note_failure(entry, num_unloads, spec, error)
                raise
            if entry.num_unloads != num_unloads or self._is_closed:
                await loaded.model.close(0)
                raise _unloaded(spec)
            self._replace(entry, spec, loaded)

    async def _open(self, spec: ModelSpec) -> Loaded:
        in_use = {(entry.spec.name, entry.spec.version): entry.spec for entry in self._all() if not entry.is_out}
        specs = (in_use | {(spec.name, spec.version): spec}).values()

        def open_here() -> Loaded:
            from serve.models.shares import share_threads

            shared = replace(spec, threads=share_threads(specs)[spec.name, spec.version])
            return load_model(shared, self._locate(spec.path, spec.name), loop=self._loop)

        try:
            async with self._loading:
                return await in_thread(open_here, f"loading {spec.name}")
        except EdgesmithError:
            raise
        except Exception as error:
            _LOG.exception("loading %s %s", spec.name, spec.version)
            message = f"{spec.path}: cannot be loaded: {type(error).__name__}: {error}"
            raise EngineFailedError(message) from error

    def _note_failure(self, entry: Entry, num_unloads: int, spec: ModelSpec, error: EdgesmithError) -> None:
        self.num_load_failures += 1
        _LOG.error("%s %s cannot be loaded: %s", spec.name, spec.version, error)
        if entry.loaded is not None:
            entry.reason = f"the one before is kept, for the load of {spec.path} failed: {error.message}"
        elif entry.num_unloads == num_unloads:
            entry.state, entry.reason = "UNAVAILABLE", error.message

    def _replace(self, entry: Entry, spec: ModelSpec, loaded: Loaded) -> None:
        """Let the new one answer from now on."""
        old, entry.loaded, entry.spec = entry.loaded, loaded, spec
        entry.state, entry.reason = "READY", ""
        retiring = None if old is None else self._retire(old.model, None)
        if self.observer is not None:
            self.observer.published(loaded)
        self._publish(spec.name)
        self.num_loads += 1
        self.num_swaps += old is not None
        verb = "loaded" if old is None else "replaced"
        _LOG.info("%s %s %s from %s: %s", verb, spec.name, spec.version, spec.path, loaded.report)
        if retiring is not None:
            entry.closing = retiring

    def _publish(self, name: str) -> None:
        """Make the look-up of one name anew; readers see the old one or the new one."""
        ready: dict[str | None, Model] = {
            version: entry.loaded.model for version, entry in self._entries[name].items() if entry.loaded is not None
        }
        if ready:
            ready[None] = ready[max((version for version in ready if version is not None), key=natural_key)]
        self._ready[name] = ready

    def _retire(self, model: Model, timeout_s: float | None) -> asyncio.Task[None]:
        """Let a model finish what it was given, close it, and give its memory back."""
        end_watch = None if self.observer is None else self.observer.withdrawn(model)
        return self._run(self._end(model, timeout_s, end_watch))

    async def _end(self, model: Model, timeout_s: float | None, end_watch: Callable[[], None] | None) -> None:
        self._retiring.add(model)
        try:
            await model.close(timeout_s)
        except Exception:  # noqa: BLE001 - logged; what follows must be done all the same
            _LOG.exception("closing %s %s", model.name, model.version)
        self._retiring.discard(model)
        del model

        def clean_up() -> None:
            if end_watch is not None:
                end_watch()
            release_memory()

        await in_thread(clean_up, "cleaning up")

    async def unload(self, name: str, version: str | None = None) -> None:
        """Take a model out at once, let it finish what it was given, and close it. What loads it meanwhile fails.

        Args:
            name: The model.
            version: By default all of them.

        Raises:
            ModelNotFoundError: There is no such model or version.
        """
        known = self._entries.get(name, {})
        entries = [entry for one, entry in known.items() if version in (None, one)]
        if not entries:
            raise no_such_model(name, version, self._entries)
        await asyncio.shield(asyncio.gather(*(self._run(self._unload(entry, None)) for entry in entries)))

    async def _unload(self, entry: Entry, timeout_s: float | None) -> None:
        entry.is_out = True
        entry.num_unloads += 1
        loaded, entry.loaded = entry.loaded, None
        if entry.state != "UNAVAILABLE":
            entry.state, entry.reason = "UNLOADING", ""
        self._publish(entry.spec.name)
        closings = [] if entry.closing is None else [entry.closing]
        if loaded is not None:
            entry.closing = self._retire(loaded.model, timeout_s)
            closings.append(entry.closing)
        del loaded
        if closings:
            await asyncio.wait(closings, timeout=timeout_s)
        if entry.state == "UNLOADING":
            entry.state, entry.reason = "UNAVAILABLE", "unloaded"

    async def close(self, timeout_s: float) -> None:
        """Let all models finish, and close them; a load that is under way comes to nothing.

        Args:
            timeout_s: What is not finished then fails.
        """
        self._is_closed = True
        until_s = self._loop.time() + timeout_s
        ends = [model.close(timeout_s) for model in self._retiring]  # they were given all the time they want
        await asyncio.gather(*ends, *(self._unload(entry, timeout_s) for entry in self._all()))
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=min(_LAST_LOADS_S, max(0.0, until_s - self._loop.time())))


def _unloaded(spec: ModelSpec) -> NotReadyError:
    return NotReadyError(f"version {spec.version} of the model {spec.name} was unloaded before it was loaded")
