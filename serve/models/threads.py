"""Threads that nobody waits for when the process ends: a model may be half loaded then, or an engine stuck in a run."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar
from weakref import WeakSet

__all__ = ["are_threads_left", "in_thread", "start_thread"]

Result = TypeVar("Result")

_started: WeakSet[threading.Thread] = WeakSet()


def start_thread(work: Callable[[], None], name: str) -> threading.Thread:
    """Start a thread that may be inside an engine's library."""
    thread = threading.Thread(target=work, name=name, daemon=True)
    _started.add(thread)
    thread.start()
    return thread


def are_threads_left() -> bool:
    """Whether any of them still runs: then only `os._exit` ends the process without waking it in the midst of C++."""
    return any(thread.is_alive() for thread in list(_started))


async def in_thread(function: Callable[[], Result], name: str) -> Result:
    """Call a function in a thread of its own and wait for what it gives.

    Unlike `loop.run_in_executor`, neither the loop's end nor the interpreter's waits for it.

    Raises:
        BaseException: What the function raises.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[Result] = loop.create_future()

    def tell(result: Result | None, error: BaseException | None) -> None:
        if future.done():  # whoever waited was cancelled
            return
        if error is not None:
            future.set_exception(error)
        else:
            future.set_result(result)  # type: ignore[arg-type]

    def work() -> None:
        result: Result | None = None
        fault: BaseException | None = None
        try:
            result = function()
        except BaseException as error:  # noqa: BLE001 - told to whoever waits
            fault = error
        with suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(tell, result, fault)
        result = fault = None  # the error's traceback has this frame

    start_thread(work, name)
    return await future
