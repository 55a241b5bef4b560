"""The same server on Ray Serve: its routes in every replica, behind Ray's own HTTP proxies.

Ray holds the connections, shares requests among replicas and nodes and restarts what fails; batching, limits, access
and answers are those of the server alone. What one replica cannot decide for all, such as loading a model by request,
is refused.

Ray belongs into a network that is trusted: whoever reaches its ports can run code on its nodes. On loopback all of them
are there but one, which each replica opens for Ray's own calls on every interface, whatever address is asked for.

Source: docs.ray.io, "ray.serve.ingress" (a function that gives an ASGI application is called on each replica).
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from edgesmith.errors import MissingExtraError, UsageError
from edgesmith.files import atomic_write
from serve.config import ServerConfig

__all__ = ["REPLICA_HEADER", "application", "deployment", "run_on_ray"]

REPLICA_HEADER = b"x-edgesmith-replica"
_log = logging.getLogger("serve")


def deployment(
    config: ServerConfig, *, num_replicas: int = 1, cpus_per_replica: float = 1.0, max_per_node: int | None = None
) -> Any:
    """Make a Ray Serve application of a server, for `ray.serve.run`.

    Args:
        config: What each replica is told; its models lie at the same paths on every node. Host, port and TLS are those
            of Ray's proxies.
        num_replicas: Servers that run at a time, each with all models.
        cpus_per_replica: What Ray keeps free for each; the engines' threads are the configuration's.
        max_per_node: Replicas of one node at most.

    Returns:
        A `ray.serve.Application`.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        UsageError: The configuration asks for what replicas cannot do each on their own.
    """
    _check(config)
    serve = _ray_serve()
    wrapped = serve.deployment(
        serve.ingress(application_of(config))(),
        name="edgesmith",
        num_replicas=num_replicas,
        max_ongoing_requests=config.limits.max_connections,
        max_replicas_per_node=max_per_node,
        graceful_shutdown_timeout_s=config.drain_s,
        ray_actor_options={"num_cpus": cpus_per_replica},
    )
    return wrapped.bind()


def application_of(config: ServerConfig) -> Callable[[], Any]:
    """What a replica calls to get its ASGI application."""

    def build() -> Any:
        return application(config)

    return build


def application(config: ServerConfig) -> Any:
    """The server as an ASGI application that loads its models when it starts; answers name the replica."""
    found: Any = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal found
        if found is None:  # on the loop that serves, where models and bookkeeping belong
            found = _start(config)
        if scope["type"] != "http":
            await found(scope, receive, send)
            return
        replica = _replica_name()

        async def send_named(message: Any) -> None:
            if message["type"] == "http.response.start":
                message = message | {"headers": [*message["headers"], (REPLICA_HEADER, replica)]}
            await send(message)

        await found(scope, receive, send_named)

    return app


def _start(config: ServerConfig) -> Any:
    from serve.app import App
    from serve.http.asgi import asgi_app

    app = App(config)
    return asgi_app(app.router, config.limits, app.access, on_startup=app.start_models, on_shutdown=app.stop_models)


def _replica_name() -> bytes:
    from ray import serve

    context = serve.get_replica_context()
    return str(context.replica_tag).encode()


def _check(config: ServerConfig) -> None:
    asked = {
        "--grpc-port": config.grpc_port is not None,
        "--tls-certificate": config.tls_certificate is not None or config.tls_key is not None,
        "--repository": config.repository is not None,
        "--admin-token": config.admin_token is not None,
        "--record": config.record_to is not None,
    }
    mends = {
        "--grpc-port": "Ask over HTTP.",
        "--tls-certificate": "End TLS in a proxy before Ray's.",
        "--record": "Take the figures from /metrics.",
    }
    for flag, is_asked in asked.items():
        if is_asked:
            raise UsageError(
                f"{flag} means nothing on Ray, where each replica is a server of its own behind Ray's proxies",
                mend=mends.get(flag, "Deploy again to change the models: that replaces one replica after the other."),
            )


def _ray_serve() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from ray import serve
    except ImportError as error:
        raise MissingExtraError(
            f"Ray Serve cannot be imported: {error}", mend="Install it: pip install 'edgesmith[ray]'"
        ) from error
    return serve


def run_on_ray(config: ServerConfig, *, num_replicas: int = 1) -> None:
    """Deploy a server and keep it until SIGTERM or SIGINT comes.

    It joins the cluster that $RAY_ADDRESS names; without one it starts Ray on this machine, on loopback and without
    dashboard, and ends it at the end.

    Args:
        config: What each replica is told; host and port are those of Ray's proxies. Port 0 is none that Ray can take.
        num_replicas: Servers that run at a time.

    Raises:
        MissingExtraError: Ray Serve is not installed.
        UsageError: The configuration asks for what Ray cannot do, or its proxy or a replica does not start.
    """
    if config.port == 0:
        raise UsageError("port 0, a free one, is none that every node's proxy can take", mend="Name a port.")
    absolute = _with_absolute_paths(config)
    app = deployment(absolute, num_replicas=num_replicas)
    import ray
    from ray import serve

    address = os.environ.get("RAY_ADDRESS", "")
    settings: dict[str, Any] = {} if address else {"_node_ip_address": "127.0.0.1", "include_dashboard": False}
    ray.init(address=address or "local", log_to_driver=False, **settings)
    try:
        # A proxy prefers its own node's replicas, so there is one on every node; who asks spreads requests over nodes.
        serve.start(proxy_location="EveryNode", http_options={"host": config.host, "port": config.port})
        try:
            serve.run(app, name="edgesmith", route_prefix="/")
        except RuntimeError as error:
            raise UsageError(f"Ray could not deploy the server: {error}") from error
        url = f"http://{config.host}:{config.port}"
        _log.info("ready at %s on Ray: %d replicas", url, num_replicas)
        if config.announce_to is not None:
            atomic_write(config.announce_to, url + "\n")
        asyncio.run(_wait())
        _log.info("told to stop")
    finally:
        serve.shutdown()
        ray.shutdown()


def _with_absolute_paths(config: ServerConfig) -> ServerConfig:
    """Paths as other processes find them, whose working folders are Ray's."""
    from dataclasses import replace

    models = tuple(
        replace(
            spec,
            path=Path(spec.path).resolve(),
            adapters=tuple((path.resolve(), scale) for path, scale in spec.adapters),
        )
        for spec in config.models
    )
    return replace(config, models=models)


async def _wait() -> None:
    """Wait for a signal."""
    loop, told = asyncio.get_running_loop(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(NotImplementedError):  # Windows
            loop.add_signal_handler(number, told.set)
    await told.wait()
