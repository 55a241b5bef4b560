"""The gRPC server: `inference.GRPCInferenceService` on the loop that serves HTTP.

The library's own asyncio server does it: it works on uvloop, has its network threads in C, and calls handlers on the
loop, where the models are. Metadata are looked at before a message is taken in. Requests are parsed in the handlers, so
that a damaged one is the client's error.
"""

from __future__ import annotations

import logging
import re
import secrets
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from edgesmith.errors import UsageError
from serve.access import Access
from serve.config import ServerConfig
from serve.errors import MalformedError, RequestError
from serve.http.router import AccessLevel
from serve.protocols.grpc.messages import PACKAGE, message_class
from serve.protocols.grpc.methods import METHODS, Call, Method
from serve.protocols.grpc.status import status_of
from serve.service import Service

__all__ = ["GrpcServer"]

_SERVICE = f"{PACKAGE}.GRPCInferenceService"
_MAX_MESSAGE_CHARS = 1000  # of an error; it travels in a header
_MAX_KEY_CHARS = 256
_MAX_CALLS = 128  # at a time; each holds a message of up to `max_body_bytes`, and queues are no longer by default
_SANE = re.compile(r"[\x21-\x7e]{1,128}")

_log = logging.getLogger("serve")


class GrpcServer:
    """Answers gRPC on one address.

    Args:
        service: Where the models are.
        access: Who may call what; keys come as metadata `authorization: Bearer KEY` or `x-api-key`.
    """

    def __init__(self, service: Service, access: Access) -> None:
        self._service = service
        self._access = access
        self._server: grpc.aio.Server | None = None
        self._address = ("", 0)

    @property
    def address(self) -> tuple[str, int]:
        """Host and port."""
        return self._address

    async def start(self, host: str, port: int) -> None:
        """Listen.

        Args:
            host: Name or address.
            port: 0 takes a free one.

        Raises:
            UsageError: The address is taken or unknown, or a file for TLS cannot be read.
        """
        limits = self._service.limits
        server = grpc.aio.server(
            options=[
                ("grpc.max_receive_message_length", limits.max_body_bytes),
                ("grpc.max_send_message_length", -1),
                ("grpc.max_metadata_size", limits.max_header_bytes),
                ("grpc.so_reuseport", 0),  # with it, two servers on one port would share its calls
            ],
            maximum_concurrent_rpcs=min(limits.max_connections, _MAX_CALLS),
        )
        handlers = {f"/{_SERVICE}/{name}": self._handler(name, method) for name, method in METHODS.items()}
        levels = {f"/{_SERVICE}/{name}": method.access for name, method in METHODS.items()}
        server.add_generic_rpc_handlers((_Gate(self._access, handlers, levels),))
        where = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        credentials = _credentials(self._service.config)
        try:
            if credentials is None:
                bound = server.add_insecure_port(where)
            else:
                bound = server.add_secure_port(where, credentials)
        except RuntimeError as error:
            raise UsageError(f"gRPC cannot listen on {where}: {error}", mend="Choose another port.") from error
        await server.start()
        self._server, self._address = server, (host, bound)

    async def stop(self, timeout_s: float) -> None:
        """Take no more calls, finish those that are under way, and close. Stopping twice is harmless.

        Args:
            timeout_s: What is not finished then is cut.
        """
        server, self._server = self._server, None
        if server is not None:
            await server.stop(timeout_s)

    def _handler(self, name: str, method: Method) -> Any:
        read = message_class(f"{name}Request").FromString

        async def handle(data: bytes, context: Any) -> bytes:
            received_ns = time.monotonic_ns()
            metadata = {str(key): value for key, value in context.invocation_metadata() or ()}
            try:
                call = Call(
                    self._service,
                    _parse(read, data),
                    received_ns,
                    _deadline_ns(context.time_remaining(), received_ns),
                    _sticky_key(metadata),
                    _request_id(metadata),
                )
                answer = await method.handle(call)
                if call.version:
                    context.set_trailing_metadata(_trailer(call))
                return bytes(answer.SerializeToString())
            except Exception as error:  # noqa: BLE001 - whatever it is, the client gets a status
                code, message = status_of(error)
                if code is grpc.StatusCode.INTERNAL:
                    _log.error("a call of %s failed", name, exc_info=error)
            await context.abort(code, message[:_MAX_MESSAGE_CHARS])
            raise AssertionError("abort raises")

        return grpc.unary_unary_rpc_method_handler(handle)


class _Gate(grpc.GenericRpcHandler):  # type: ignore[misc]
    """Finds methods, and turns those away who may not call them before any of their message is taken in.

    Args:
        access: Who may call what.
        handlers: By the method's path.
        levels: Of each, whom it is open to.
    """

    def __init__(self, access: Access, handlers: Mapping[str, Any], levels: Mapping[str, AccessLevel]) -> None:
        self._access = access
        self._handlers = handlers
        self._levels = levels

    def service(self, handler_call_details: Any) -> Any:
        """Give what answers a call; None for a method that there is not."""
        path = handler_call_details.method
        handler = self._handlers.get(path)
        if handler is None:
            return None
        metadata = {str(key): value for key, value in handler_call_details.invocation_metadata or ()}
        try:
            self._access.check(self._levels[path], "POST", lambda header: _header(metadata, header))
        except RequestError as error:
            return _refusing(*status_of(error))
        return handler


def _refusing(code: grpc.StatusCode, message: str) -> Any:
    """Make a handler that refuses: one of a stream, since such a one waits for no message before it is called."""

    async def refuse(messages: Any, context: Any) -> bytes:
        del messages
        await context.abort(code, message[:_MAX_MESSAGE_CHARS])
        raise AssertionError("abort raises")

    return grpc.stream_unary_rpc_method_handler(refuse)


def _parse(read: Callable[[bytes], Any], data: bytes) -> Any:
    try:
        return read(data)
    except DecodeError as error:
        raise MalformedError("the message cannot be read") from error


def _header(metadata: Mapping[str, Any], name: bytes) -> bytes | None:
    """Give metadata as a header. No browser can call gRPC, so that the host it was called by needs no check."""
    if name == b"host":
        return b"localhost"
    value = metadata.get(name.decode())
    return value.encode("latin-1", "replace") if isinstance(value, str) else value


def _sticky_key(metadata: Mapping[str, Any]) -> str | None:
    value = metadata.get("x-edgesmith-key")
    return value[:_MAX_KEY_CHARS] if isinstance(value, str) and value else None


def _request_id(metadata: Mapping[str, Any]) -> str:
    """The client's own name for the call, or a new one where it gives none that can be shown in a log."""
    value = metadata.get("x-request-id")
    return value if isinstance(value, str) and _SANE.fullmatch(value) else f"req-{secrets.token_hex(12)}"


def _trailer(call: Call) -> tuple[tuple[str, str], ...]:
    version = ("x-model-version", call.version)
    return (version, ("x-request-id", call.request_id)) if call.request_id.isascii() else (version,)


def _deadline_ns(remaining_s: float | None, received_ns: int) -> int | None:
    return None if remaining_s is None else received_ns + int(max(remaining_s, 0.0) * 1e9)


def _credentials(config: ServerConfig) -> Any:
    if config.tls_certificate is None or config.tls_key is None:
        return None
    return grpc.ssl_server_credentials([(_read(config.tls_key), _read(config.tls_certificate))])


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror}") from error
