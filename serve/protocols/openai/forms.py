"""The objects of answers: completions and chat completions, whole and as pieces of a stream.

Source: OpenAI API reference, "Completions" and "Chat completions".
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from serve.runtime.generation import LikelyToken, TokenLogprob

__all__ = ["ChatForm", "CompletionForm", "Form", "usage_object"]


class Form(Protocol):
    """How one of the two routes writes its choices."""

    kind: str
    """`object` of a whole answer."""
    piece_kind: str
    """`object` of a piece."""
    prefix: str
    """Of an answer's id."""

    def first(self, index: int) -> dict[str, Any] | None:
        """What a stream says of a choice before any of its text; None for nothing."""

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A choice with a piece of its text."""

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        """A choice that has ended."""

    def whole(self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish_reason: str) -> dict[str, Any]:
        """A choice with all of its text."""


@dataclass(slots=True)
class ChatForm:
    """Chat completions.

    Args:
        has_logprobs: Whether they were asked for.
    """

    has_logprobs: bool
    kind: str = "chat.completion"
    piece_kind: str = "chat.completion.chunk"
    prefix: str = "chatcmpl-"

    def first(self, index: int) -> dict[str, Any]:
        """The role, with which every stream begins."""
        return self._delta(index, {"role": "assistant", "content": ""}, None, None)

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A piece of the content."""
        return self._delta(index, {"content": text}, self._logprobs(logprobs), None)

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        """The reason why it ended."""
        return self._delta(index, {}, None, finish_reason)

    def whole(self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish_reason: str) -> dict[str, Any]:
        """A message."""
        return {
            "index": index,
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": self._logprobs(logprobs),
            "finish_reason": finish_reason,
        }

    def _delta(self, index: int, delta: dict[str, Any], logprobs: Any, finish_reason: str | None) -> dict[str, Any]:
        return {"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}

    def _logprobs(self, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        if not self.has_logprobs:
            return None
        content = [{**_likely(one), "top_logprobs": [_likely(other) for other in one.likely]} for one in logprobs]
        return {"content": content, "refusal": None}


class _TextEnd:
    """Where the text of the tokens so far ends, in characters, one of which may take several tokens."""

    __slots__ = ("_decoder", "_offset")

    def __init__(self, offset: int) -> None:
        self._offset = offset
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def move(self, data: bytes) -> int:
        """Add a token; gives where it begins."""
        begin = self._offset
        self._offset += len(self._decoder.decode(data))
        return begin


@dataclass(slots=True)
class CompletionForm:
    """Completions of a text.

    Args:
        has_logprobs: Whether they were asked for.
        echoed: What stands before the answers, for each prompt; empty where it is not to be repeated.
        num_choices: Answers to each prompt.
    """

    has_logprobs: bool
    echoed: Sequence[str] = ()
    num_choices: int = 1
    kind: str = "text_completion"
    piece_kind: str = "text_completion"
    prefix: str = "cmpl-"
    _ends: dict[int, _TextEnd] = field(default_factory=dict)

    def first(self, index: int) -> dict[str, Any] | None:
        """The prompt, where it is to be repeated."""
        text = self._echo(index)
        return {"index": index, "text": text, "logprobs": None, "finish_reason": None} if text else None

    def piece(self, index: int, text: str, logprobs: Sequence[TokenLogprob]) -> dict[str, Any]:
        """A piece of the text."""
        return {"index": index, "text": text, "logprobs": self._logprobs(index, logprobs), "finish_reason": None}

    def last(self, index: int, finish_reason: str) -> dict[str, Any]:
        """The reason why it ended."""
        return {"index": index, "text": "", "logprobs": None, "finish_reason": finish_reason}

    def whole(self, index: int, text: str, logprobs: Sequence[TokenLogprob], finish_reason: str) -> dict[str, Any]:
        """The text, after its prompt where that is to be repeated."""
        return {
            "index": index,
            "text": self._echo(index) + text,
            "logprobs": self._logprobs(index, logprobs),
            "finish_reason": finish_reason,
        }

    def _echo(self, index: int) -> str:
        return self.echoed[index // self.num_choices] if self.echoed else ""

    def _logprobs(self, index: int, logprobs: Sequence[TokenLogprob]) -> dict[str, Any] | None:
        """Four lists of equal length; offsets count characters from the beginning of the text."""
        if not self.has_logprobs:
            return None
        end = self._ends.setdefault(index, _TextEnd(len(self._echo(index))))
        return {
            "tokens": [_name(one) for one in logprobs],
            "token_logprobs": [one.logprob for one in logprobs],
            "top_logprobs": [{_name(other): other.logprob for other in one.likely} for one in logprobs],
            "text_offset": [end.move(one.data) for one in logprobs],
        }


def usage_object(num_prompt: int, num_answer: int, num_reused: int) -> dict[str, Any]:
    """Counted tokens."""
    return {
        "prompt_tokens": num_prompt,
        "completion_tokens": num_answer,
        "total_tokens": num_prompt + num_answer,
        "prompt_tokens_details": {"cached_tokens": num_reused},
    }


def _likely(one: LikelyToken) -> dict[str, Any]:
    return {"token": one.text, "logprob": one.logprob, "bytes": list(one.data)}


def _name(one: LikelyToken) -> str:
    """A token's text; of a part of a character its bytes, as OpenAI names them, so that no two share a name."""
    try:
        return one.data.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in one.data)
