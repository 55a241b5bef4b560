"""The process of the builder: what Python code in it cannot do."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
ATTEMPTS = {
    "connect": "socket.socket().connect(('127.0.0.1', 9))",
    "datagram": "socket.socket(type=socket.SOCK_DGRAM).sendto(b'x', ('127.0.0.1', 9))",
    "message": "socket.socket(type=socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, ('127.0.0.1', 9))",
    "listen": "socket.socket().bind(('127.0.0.1', 0))",
    "name": "socket.gethostbyname('localhost')",
    "address": "socket.getaddrinfo('localhost', 9)",
    "program": "subprocess.run(['true'])",
    "shell": "os.system('true')",
    "exec": "os.execv('/bin/true', ['true'])",
    "spawn": "os.posix_spawn('/bin/true', ['true'], {})",
    "fork": "os.fork() or os._exit(0)",
    "terminal": "__import__('pty').spawn(['true'])",
}


@pytest.mark.parametrize("name", ATTEMPTS)
def test_pythons_ways_out_are_closed(name: str) -> None:
    code = (
        "import os, socket, subprocess, sys\n"
        "from export.genai.builder_process import _refuse\n"
        f"sys.addaudithook(_refuse)\ntry:\n    {ATTEMPTS[name]}\n"
        "except OSError as error:\n    print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env={"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "is out of reach while a model is built" in done.stdout
