"""Room for texts on a llama.cpp model that grows with them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from serve.runtime.llama_adapters import LlamaAdapters
from serve.runtime.llama_library import LlamaContext
from serve.runtime.llama_session import LlamaSession

__all__ = ["LlamaRoom"]

Kind = TypeVar("Kind", LlamaSession, LlamaContext)


class LlamaRoom(Generic[Kind]):
    """A context that is made anew where it is too small."""

    def __init__(self) -> None:
        self.held: Kind | None = None
        self._kind: str | None = None

    def grown(
        self, size: int, make: Callable[[int], Kind], adapters: LlamaAdapters, *, kind: str | None = None
    ) -> Kind:
        """The context for a text of so many tokens; while a new one is made, there is none."""
        if self.held is None or self.held.num_tokens < size or self._kind != kind:
            self.close()
            made = make(size)
            try:
                adapters.put_on(made)
            except BaseException:
                made.close()
                raise
            self.held, self._kind = made, kind
        return self.held

    def close(self) -> None:
        """Free it. Closing twice is harmless."""
        held, self.held = self.held, None
        if held is not None:
            held.close()
