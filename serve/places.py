"""Where a server runs: in this process, or as replicas of something that scales out."""

from __future__ import annotations

from edgesmith.errors import UsageError
from serve.arguments import PLACES
from serve.config import ServerConfig

__all__ = ["run_at"]


def run_at(config: ServerConfig, place: str | None = None, num_replicas: int = 1) -> None:
    """Serve until the process is told to stop.

    Args:
        config: What to serve.
        place: `ray`, or None for this process.
        num_replicas: Servers that run at a time; only one fits into this process.

    Raises:
        EdgesmithError: It cannot start; see `serve.app.App.start` and `serve.ray_deployment.run_on_ray`.
    """
    if num_replicas < 1:
        raise UsageError(f"--replicas {num_replicas}: there must be at least 1")
    if place is None:
        if num_replicas > 1:
            raise UsageError(f"--replicas {num_replicas} needs something that runs them", mend="Add --on ray.")
        from serve.app import run_server

        run_server(config)
        return
    if place not in PLACES:
        raise UsageError(f"--on {place}: unknown; use {', '.join(PLACES)}, or leave it out for this process")
    from serve.ray_deployment import run_on_ray

    run_on_ray(config, num_replicas=num_replicas)
