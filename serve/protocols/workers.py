"""Threads for what must not be done on the loop's thread: tokenizing long texts, unpacking pictures, templates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Literal, TypeVar

from serve.errors import OverloadedError

__all__ = ["LARGE_BODY_BYTES", "Workers", "workers"]

LARGE_BODY_BYTES = 256 << 10
"""A body above this is read by a worker: it takes longer than a change of threads, and others wait for the loop."""

Result = TypeVar("Result")

_NUM_THREADS = 2  # pictures take up to some hundred MB while they are unpacked
_MAX_WAITING = 64


class Workers:
    """A few threads with a bounded queue.

    Args:
        name: Of the threads.
        num_threads: Calls at a time.
        max_waiting: Calls that may wait or run; more are refused at once.
    """

    def __init__(self, name: str, num_threads: int = _NUM_THREADS, max_waiting: int = _MAX_WAITING) -> None:
        self._threads = ThreadPoolExecutor(num_threads, thread_name_prefix=name)
        self._max_waiting = max_waiting
        self._num_waiting = 0

    async def run(self, call: Callable[[], Result]) -> Result:
        """Run a call in a thread, from the loop's thread.

        Raises:
            OverloadedError: Too many are waiting.
        """
        if self._num_waiting >= self._max_waiting:
            raise OverloadedError(f"{self._num_waiting} requests wait to be prepared", mend="Try again in a second.")
        self._num_waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self._threads, call)
        finally:
            self._num_waiting -= 1


@cache
def workers(purpose: Literal["rows", "prompts"] = "rows") -> Workers:
    """Those of this process, shared by all protocols so that the bound holds for all of them together.

    Args:
        purpose: Rows of a graph, or prompts, whose tokens some engines count only after the answer they are writing.
    """
    return Workers(purpose)
