"""Listening sockets and the loop that serves them."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Coroutine
from typing import Any, TypeVar

from edgesmith.errors import UsageError

__all__ = ["BACKLOG", "listen", "raise_descriptor_limit", "run_loop"]

T = TypeVar("T")

BACKLOG = 2048
_SPARE_DESCRIPTORS = 256


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that listen on every address of `host`, all on one port.

    Args:
        host: Name or address; IPv6 with or without brackets. `::` takes IPv4 too.
        port: 0 takes a free one.

    Raises:
        UsageError: The name is unknown, or the port is taken or not allowed.
    """
    name = host.strip("[]")
    try:
        infos = socket.getaddrinfo(name or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, UnicodeError, OverflowError) as error:
        raise UsageError(
            f"no address to listen on for host {host!r} and port {port}: {error}",
            mend="Use an address of this machine, such as 127.0.0.1 or 0.0.0.0.",
        ) from error
    sockets: list[socket.socket] = []
    try:
        for family, address in dict.fromkeys((info[0], info[4]) for info in infos):
            bound_port = sockets[0].getsockname()[1] if sockets else port
            try:
                sockets.append(_bind(family, (address[0], bound_port, *address[2:])))
            except OSError as error:
                if family == socket.AF_INET6 and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT) and sockets:
                    continue  # a name with an IPv6 address on a machine without IPv6
                raise _refusal(host, bound_port, error) from error
    except UsageError:
        for bound in sockets:
            bound.close()
        raise
    return sockets


def _bind(family: int, address: tuple[Any, ...]) -> socket.socket:
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        bound.setblocking(False)
        if os.name == "posix":  # elsewhere it lets two servers share a port
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            bound.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        bound.bind(address)
        bound.listen(BACKLOG)
    except OSError:
        bound.close()
        raise
    return bound


def _refusal(host: str, port: int, error: OSError) -> UsageError:
    match error.errno:
        case errno.EADDRINUSE:
            return UsageError(
                f"port {port} of {host} is in use",
                mend="Stop the program that listens there, or choose another with --port (0 takes a free one).",
            )
        case errno.EACCES:
            return UsageError(
                f"port {port} of {host} may not be opened by this user", mend="Choose a port above 1023 with --port."
            )
        case errno.EADDRNOTAVAIL:
            return UsageError(
                f"{host} is no address of this machine", mend="Use 127.0.0.1, or 0.0.0.0 for all its addresses."
            )
    return UsageError(f"cannot listen on port {port} of {host}: {error.strerror}")


def raise_descriptor_limit(num_connections: int) -> int:
    """Let this process hold that many connections beside its files, as far as the hard limit goes.

    Returns:
        How many descriptors it may hold now; 0 where there is no such limit.
    """
    try:
        import resource
    except ImportError:
        return 0
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num_connections + _SPARE_DESCRIPTORS
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return soft
    soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return soft


def run_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` on a uvloop, or on asyncio's own loop where uvloop is not installed."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)
