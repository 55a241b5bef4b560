"""Connections of the load generator, on the loopback address."""

from __future__ import annotations

import shutil
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.load.generator.wire import Connections, _first_that_answers, exchange
from bench.load.target import Address

IDLE_S = 0.3
REQUEST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n"


def answer(connection: socket.socket) -> None:
    """Answer requests until none came for a while, as servers do that keep connections."""
    with connection:
        connection.settimeout(IDLE_S)
        try:
            while connection.recv(1000):
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        except OSError:
            return


@pytest.fixture(params=["plain", "tls"])
def address(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Address]:
    """A server that closes connections on which nothing was asked for 0.3 s."""
    is_tls = request.param == "tls"
    context = None
    if is_tls:
        if shutil.which("openssl") is None:
            pytest.skip("openssl is not installed")
        key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
        subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
        files = ["-keyout", str(key), "-out", str(certificate)]
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", *subject, *files]
        subprocess.run(command, check=True, capture_output=True)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate, key)
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            if context is not None:
                connection = context.wrap_socket(connection, server_side=True)
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield Address(host="localhost", port=listener.getsockname()[1], is_tls=is_tls)
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join()


def test_open_connections_are_used_again_and_those_that_the_server_closed_are_not(address: Address) -> None:
    connections = Connections(address)
    for _ in range(5):
        assert bytes(exchange(connections, REQUEST, timeout_s=5, stream=None).body) == b"ok"
    assert connections.num_opened == 1
    time.sleep(IDLE_S + 0.2)
    assert bytes(exchange(connections, REQUEST, timeout_s=5, stream=None).body) == b"ok"
    assert connections.num_opened == 2
    connections.close()


def test_of_several_places_the_first_that_answers_is_used() -> None:
    def place(port: int) -> tuple[tuple[int, int, int], tuple[str, int]]:
        return (socket.AF_INET, socket.SOCK_STREAM, 6), ("127.0.0.1", port)

    with socket.create_server(("127.0.0.1", 0)) as silent:
        closed = place(silent.getsockname()[1])
    with socket.create_server(("127.0.0.1", 0)) as listener:
        there = place(listener.getsockname()[1])
        assert _first_that_answers([closed, there]) == there
        assert _first_that_answers([there, closed]) == there
    assert _first_that_answers([closed, there]) == closed
