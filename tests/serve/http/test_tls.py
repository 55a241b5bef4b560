from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import uvloop

from edgesmith.errors import UsageError
from serve.config import Limits
from serve.http.message import Request, Response
from serve.http.router import Route
from serve.http.tls import make_tls_context
from tests.serve.http.harness import ROUTES, serving

pytestmark = pytest.mark.skipif(shutil.which("openssl") is None, reason="certificates are made by openssl")


def openssl(*arguments: str | Path) -> None:
    subprocess.run(["openssl", *map(str, arguments)], check=True, capture_output=True)


def make_pair(folder: Path, name: str) -> tuple[Path, Path]:
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    curve = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
    name_of_it = ("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost")
    openssl("req", "-x509", *curve, "-days", "2", *name_of_it, "-keyout", key, "-out", certificate)
    return certificate, key


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_pair(tmp_path_factory.mktemp("tls"), "good")


@pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_requests_pass_through_tls(pair: tuple[Path, Path], factory: Callable[[], asyncio.AbstractEventLoop]) -> None:
    gone: list[bool] = []

    def never(request: Request) -> None:
        request.on_close(lambda: gone.append(True))

    routes = [*ROUTES, Route("GET", "/never", never)]
    trust = ssl.create_default_context(cafile=str(pair[0]))
    with serving(routes, Limits(max_body_bytes=2_000_000), tls=make_tls_context(*pair), loop_factory=factory) as live:
        assert live.server.url.startswith("https://")
        client = live.connect(tls=trust)
        body = bytes(range(256)) * 5000
        assert client.request("POST", "/echo", body).body == body
        assert client.request("GET", "/").body == b"hello"
        assert client.sock.version() == "TLSv1.3"
        refused = live.connect(tls=trust)
        refused.send(b"POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 3000000\r\n\r\n" + body)
        assert refused.read().status == 413
        leaving = live.connect(tls=trust)
        leaving.send(b"GET /never HTTP/1.1\r\nHost: a\r\n\r\n")
        live.wait_until(lambda: live.server.counters.requests == 4)
        leaving.close()
        live.wait_until(lambda: gone == [True])


def test_old_versions_and_plain_http_are_turned_away(pair: tuple[Path, Path]) -> None:
    context = make_tls_context(*pair)
    assert context.minimum_version == ssl.TLSVersion.TLSv1_2
    with serving(ROUTES, tls=context) as live:
        plain = live.connect()
        plain.send(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        assert not plain.read_to_end().startswith(b"HTTP/")
        assert live.connect(tls=ssl.create_default_context(cafile=str(pair[0]))).request("GET", "/").status == 200


def test_files_that_do_not_fit_are_refused_with_a_mend(pair: tuple[Path, Path], tmp_path: Path) -> None:
    certificate, key = pair
    _, other_key = make_pair(tmp_path, "other")
    with pytest.raises(UsageError, match="does not belong to") as caught:
        make_tls_context(certificate, other_key)
    assert "certificate was made with" in caught.value.mend
    with pytest.raises(UsageError, match=r"missing\.crt is not there"):
        make_tls_context(tmp_path / "missing.crt", key)
    with pytest.raises(UsageError, match=r"missing\.key is not there"):
        make_tls_context(certificate, tmp_path / "missing.key")
    (tmp_path / "text.crt").write_text("no certificate")
    with pytest.raises(UsageError, match="no PEM"):
        make_tls_context(tmp_path / "text.crt", key)
    locked = tmp_path / "locked.key"
    openssl("pkey", "-in", key, "-aes256", "-passout", "pass:secret", "-out", locked)
    with pytest.raises(UsageError, match="is encrypted") as caught:
        make_tls_context(certificate, locked)
    assert "openssl pkey" in caught.value.mend


def has_ipv6() -> bool:
    try:
        with socket.socket(socket.AF_INET6) as probe:
            probe.bind(("::1", 0))
    except OSError:
        return False
    return True


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no IPv6")
@pytest.mark.parametrize("host", ["::1", "[::1]"])
def test_ipv6_address_is_served(host: str) -> None:
    peers: list[str] = []

    def look(request: Request) -> None:
        peers.append(request.peer)
        request.respond(Response())

    with serving([Route("GET", "/", look)], host=host) as live:
        assert live.server.url == f"http://[::1]:{live.port}"
        with socket.create_connection(("::1", live.port)) as sock:
            sock.sendall(b"GET / HTTP/1.1\r\nHost: [::1]\r\n\r\n")
            assert sock.recv(1000).startswith(b"HTTP/1.1 200")
        assert peers == ["::1"]


@pytest.mark.parametrize("factory", [uvloop.new_event_loop, asyncio.new_event_loop], ids=["uvloop", "asyncio"])
def test_connections_that_never_shake_hands_are_few_and_keep_nobody_out(
    pair: tuple[Path, Path], factory: Callable[[], asyncio.AbstractEventLoop]
) -> None:
    trust = ssl.create_default_context(cafile=str(pair[0]))
    with serving(ROUTES, Limits(max_connections=8), tls=make_tls_context(*pair), loop_factory=factory) as live:
        silent = [live.connect() for _ in range(60)]
        assert live.connect(tls=trust).request("GET", "/").body == b"hello"
        acceptor = live.server._acceptor
        assert acceptor is not None
        assert len(acceptor.pending) <= 16
        for client in silent[:40]:
            assert client.is_closed()
        live.wait_until(lambda: live.server.counters.connections == 1)
