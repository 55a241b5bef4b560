"""A whole server in a thread of the test's process."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from serve.app import App
from serve.config import ServerConfig


@dataclass(frozen=True)
class Answer:
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True)
class Running:
    app: App
    loop: asyncio.AbstractEventLoop

    @property
    def url(self) -> str:
        return self.app.url

    def ask(
        self, method: str, path: str, body: bytes | str | None = None, headers: Mapping[str, str] | None = None
    ) -> Answer:
        connection = http.client.HTTPConnection(urlsplit(self.url).netloc, timeout=60)
        with contextlib.closing(connection):
            connection.request(method, path, body, dict(headers or {}))
            answer = connection.getresponse()
            found = {name.lower(): value for name, value in answer.getheaders()}
            return Answer(answer.status, found, answer.read())


@contextlib.contextmanager
def running(config: ServerConfig) -> Iterator[Running]:
    """Start a server, wait until it is ready, and stop it at the end."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="server")
    thread.start()

    async def start() -> App:
        app = App(config)
        try:
            await app.start()
        except BaseException:
            await app.stop()
            raise
        return app

    try:
        app = asyncio.run_coroutine_threadsafe(start(), loop).result(120)
        try:
            yield Running(app, loop)
        finally:
            asyncio.run_coroutine_threadsafe(app.stop(), loop).result(60)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()
