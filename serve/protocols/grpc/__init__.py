"""Open Inference Protocol v2 over gRPC; needs the extra `grpc`.

The package is called like its protocol, and is no copy of the library `grpc`, which is imported by that name as ever.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from edgesmith.errors import MissingExtraError

if TYPE_CHECKING:
    from serve.protocols.grpc.grpc_server import GrpcServer

__all__ = ["GrpcServer"]


def __getattr__(name: str) -> Any:
    """Import the server only where it is wanted, and name the extra where it cannot be.

    Raises:
        MissingExtraError: A library is not installed.
    """
    if name != "GrpcServer":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        from serve.protocols.grpc.grpc_server import GrpcServer
    except ModuleNotFoundError as error:
        raise MissingExtraError(
            f"the library `{error.name}` is not installed; it speaks gRPC", mend="pip install 'edgesmith[grpc]'"
        ) from error
    return GrpcServer
