"""The whole server put together: models, traffic, protocols, HTTP and gRPC, and its life from start to drain."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from edgesmith.errors import UsageError
from edgesmith.files import atomic_write
from serve.access import Access, is_loopback
from serve.config import ServerConfig
from serve.drift.monitor import drift_families
from serve.http.router import Route, Router
from serve.http.server import HttpServer
from serve.http.sockets import run_loop
from serve.metrics import Metrics
from serve.models.repository import Repository
from serve.models.threads import are_threads_left
from serve.notify import notify
from serve.service import Service
from serve.traffic import Traffic, TrafficSettings

__all__ = ["App", "run_server"]

_log = logging.getLogger("serve")

_CLOSING_S = 1.0
"""For models to end when requests have taken all the time that there was."""


class App:
    """A server that is started, drained and closed on one event loop.

    Args:
        config: What it is told to do.

    Attributes:
        service: What the protocols speak to.
        router: All routes.
        http: The HTTP server.
    """

    def __init__(self, config: ServerConfig) -> None:
        self.config = config
        loop = asyncio.get_running_loop()
        repository = Repository(config, loop=loop)
        settings = TrafficSettings(slo_ms=config.slo_ms)
        self.traffic = Traffic(config.splits, config.shadows, record_to=config.record_to, settings=settings)
        metrics = Metrics(repository, [self.traffic.collect, self._collect_drift])
        self.service = Service(config, repository, metrics, self.traffic)
        self.router = Router(_routes(self.service, has_page=config.has_page))
        self.access = Access.for_host(
            config.host,
            api_keys=config.api_keys,
            admin_token=config.admin_token,
            allowed_hosts=config.allowed_hosts,
            allowed_origins=config.allowed_origins,
        )
        self.http = HttpServer(self.router, config.limits, self.access, tls=_tls(config))
        metrics.transport = self.http.counters
        self._grpc: Any = None

    @property
    def url(self) -> str:
        """Where it listens."""
        return self.http.url

    async def start(self) -> None:
        """Listen, then load all models: health says `live` at once, and `ready` when this returns.

        Raises:
            UsageError: The address is taken, or an option cannot be obeyed.
            ArtifactError: A model cannot be served.
        """
        await self.http.start(self.config.host, self.config.port)
        await self.start_models()
        if self.config.grpc_port is not None:
            from serve.protocols.grpc import GrpcServer

            self._grpc = GrpcServer(self.service, self.access)
            await self._grpc.start(self.config.host, self.config.grpc_port)

    async def start_models(self) -> None:
        """Load all models; for a server whose HTTP is somebody else's."""
        repository = self.service.repository
        await repository.start()
        self.traffic.check(repository.versions)
        self.traffic.start()
        gc.collect()
        gc.freeze()  # what is there now stays: collections need not look at it again

    def _collect_drift(self) -> Any:
        return drift_families([(*key, monitor) for key, monitor in self.service.drift.items()])

    async def stop(self) -> None:
        """Finish what is under way, at most for the configuration's `drain_s`, then close everything."""
        loop = asyncio.get_running_loop()
        until_s = loop.time() + self.config.drain_s
        self.service.is_draining = True
        self.http.begin_drain()
        await asyncio.gather(
            self.http.drain(self.config.drain_s),
            *([self._grpc.stop(self.config.drain_s)] if self._grpc is not None else []),
        )
        await self.stop_models(max(_CLOSING_S, until_s - loop.time()))

    async def stop_models(self, timeout_s: float | None = None) -> None:
        """Close models, watchers and recording, within the configuration's `drain_s` or the time given."""
        try:
            await self.service.repository.close(self.config.drain_s if timeout_s is None else timeout_s)
        finally:
            self.traffic.close()


def _routes(service: Service, *, has_page: bool) -> Sequence[Route]:
    from serve.protocols import oip, openai, predict, system
    from serve.traffic.routes import routes as traffic_routes

    found = [*oip.routes(service), *openai.routes(service), *predict.routes(service)]
    found += traffic_routes(service.traffic, service.limits)
    return [*found, *system.routes(service, found, has_page=has_page)]


def _tls(config: ServerConfig) -> Any:
    if config.tls_certificate is None and config.tls_key is None:
        return None
    if config.tls_certificate is None or config.tls_key is None:
        raise UsageError("TLS needs a certificate and its key", mend="Give --tls-certificate and --tls-key.")
    from serve.http.tls import make_tls_context

    return make_tls_context(config.tls_certificate, config.tls_key)


def run_server(config: ServerConfig) -> None:
    """Serve until SIGTERM or SIGINT comes; a second one ends it at once.

    Raises:
        EdgesmithError: It cannot start; see `App.start`.
    """
    run_loop(_serve(config))
    if are_threads_left():  # a model half loaded, or an engine that hangs: the interpreter's end would crash in it
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


async def _serve(config: ServerConfig) -> None:
    loop = asyncio.get_running_loop()
    told = asyncio.Event()
    app = App(config)
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, told.set)
    starting = loop.create_task(app.start())
    stopping = loop.create_task(told.wait())
    try:
        await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            starting.result()
            _announce(app)
            await stopping
            _log.info("told to stop: finishing what is under way")
            notify("STOPPING=1")
        else:
            starting.cancel()
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            with suppress(NotImplementedError):
                loop.remove_signal_handler(number)
        stopping.cancel()
        if config.announce_to is not None:
            config.announce_to.unlink(missing_ok=True)  # nobody is to look for a server that is gone
        await app.stop()
    _log.info("stopped")


def _announce(app: App) -> None:
    names = ", ".join(
        f"{entry.name}:{entry.version}" for entry in app.service.repository.index() if entry.state == "READY"
    )
    _log.info("ready at %s: %s", app.url, names or "no model yet")
    if not is_loopback(app.config.host) and not app.config.api_keys:
        _log.warning("every machine that reaches %s may ask: there are no API keys (--api-keys)", app.config.host)
    if app.config.announce_to is not None:
        atomic_write(app.config.announce_to, app.url + "\n")
    notify("READY=1")
