"""Requests as bytes, made once, and a client for one connection that waits for each answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["Wire", "infer_body", "post", "read_head"]

_DATATYPES = {"int64": "INT64", "float32": "FP32"}


def post(path: str, body: bytes, content_type: str = "application/json", headers: str = "") -> bytes:
    """A whole request."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: localhost\r\nAccept: */*\r\nUser-Agent: bench\r\n"
        f"Content-Type: {content_type}\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
    )
    return head.encode() + body


def infer_body(arrays: Mapping[str, NDArray[Any]], *, is_binary: bool, path: str = "/v2/models/m/infer") -> bytes:
    """A request of the Open Inference Protocol; a binary one asks for binary outputs."""
    inputs: list[dict[str, Any]] = []
    for name, array in arrays.items():
        one: dict[str, Any] = {"name": name, "shape": list(array.shape), "datatype": _DATATYPES[str(array.dtype)]}
        one |= {"parameters": {"binary_data_size": array.nbytes}} if is_binary else {"data": array.ravel().tolist()}
        inputs.append(one)
    if not is_binary:
        return post(path, json.dumps({"inputs": inputs}).encode())
    head = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}}).encode()
    body = head + b"".join(np.ascontiguousarray(array).tobytes() for array in arrays.values())
    return post(path, body, "application/octet-stream", f"Inference-Header-Content-Length: {len(head)}\r\n")


def read_head(head: bytes) -> tuple[int, int, bool]:
    """Status, length of the body, and whether the connection ends; a body of unknown length has -1."""
    lowered = head.lower()
    start = lowered.find(b"\r\ncontent-length:")
    end = lowered.find(b"\r\n", start + 2)
    size = int(lowered[start + 17 : end if end > 0 else None]) if start >= 0 else -1
    return int(head[9:12]), size, b"\r\nconnection: close" in lowered


class Wire:
    """One connection that is kept open."""

    def __init__(self, port: int, timeout_s: float = 60.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._rest = b""

    def ask(self, request: bytes) -> tuple[int, bytes]:
        """Send a request, give its status and body."""
        self.socket.sendall(request)
        data = self._rest
        while (end := data.find(b"\r\n\r\n")) < 0:
            data += self._read()
        status, size, _ = read_head(data[:end])
        body = bytearray(data[end + 4 :])
        if size < 0:
            raise ValueError(f"an answer of unknown length: {data[:end]!r}")
        while len(body) < size:
            body += self._read()
        self._rest = bytes(body[size:])
        return status, bytes(body[:size])

    def _read(self) -> bytes:
        data = self.socket.recv(1 << 20)
        if not data:
            raise ConnectionError("the server has closed the connection")
        return data

    def close(self) -> None:
        """Close."""
        self.socket.close()
