"""What completions and chat completions are asked alike: sampling, lengths, stop strings, streaming."""

from __future__ import annotations

import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from edgesmith.errors import UsageError
from serve.config import Limits
from serve.protocols.openai.errors import ParameterError
from serve.protocols.openai.fields import Fields, wrong_type
from serve.protocols.openai.response_format import MAX_GRAMMAR_BYTES
from serve.runtime.generation import Sampling

__all__ = ["IGNORED", "KNOWN", "REFUSED", "Wanted", "read_wanted"]

KNOWN = frozenset({
    "model", "max_tokens", "temperature", "top_p", "top_k", "min_p", "repeat_penalty", "seed", "n", "stop", "stream",
    "stream_options", "logprobs", "logit_bias", "presence_penalty", "frequency_penalty", "grammar",
})  # fmt: skip
"""Of both routes. `top_k`, `min_p`, `repeat_penalty` and `grammar` are ours: `extra_body` of OpenAI's client."""
IGNORED = frozenset({"user"})
"""What says something of the client and nothing of the answer."""
REFUSED: Mapping[str, Collection[Any]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
}
"""Field → values that ask for nothing."""

MAX_CHOICES = 16
_MAX_STOPS, _MAX_STOP_CHARS = 16, 1000
_NUM_SEEDS = 2**32 - 1
_INT64 = 2**63 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """How to answer.

    Attributes:
        sampling: With the seed of the first choice.
        max_tokens: Of one choice; None leaves it to the route.
        num_choices: Answers to each prompt.
        stop: Strings that end an answer.
        is_stream: Whether it is sent piece by piece.
        has_usage: Whether a stream ends with the number of tokens.
        grammar: What the answer follows, in llama.cpp's notation.
        json_schema: What the answer follows instead.
        num_logprobs: Likely tokens beside each one; None for no log-probabilities.
    """

    sampling: Sampling
    max_tokens: int | None
    num_choices: int
    stop: tuple[str, ...]
    is_stream: bool
    has_usage: bool
    grammar: str | None = None
    json_schema: Mapping[str, Any] | None = None
    num_logprobs: int | None = None


def read_wanted(
    fields: Fields,
    limits: Limits,
    *,
    num_logprobs: int | None,
    json_schema: Mapping[str, Any] | None = None,
    length_names: tuple[str, ...] = ("max_tokens",),
) -> Wanted:
    """Read what both routes have.

    Args:
        fields: Of the request.
        limits: Of the server.
        num_logprobs: As the route has read it.
        json_schema: As the route has read it.
        length_names: Fields that bound the answer's length; the first that is there counts.

    Raises:
        ParameterError: A field has a wrong type or value, or asks for what is not done.
    """
    fields.refuse(REFUSED, "is not supported by this server")
    grammar = fields.text("grammar")
    if grammar is not None and json_schema is not None:
        raise ParameterError("grammar and response_format are both given; give one of them", param="grammar")
    if grammar is not None and len(grammar) > MAX_GRAMMAR_BYTES:
        raise ParameterError(
            f"the grammar has {len(grammar):,} characters; at most {MAX_GRAMMAR_BYTES:,} are taken", param="grammar"
        )
    lengths = [fields.whole(name, 1, limits.max_tokens) for name in length_names]
    is_stream = fields.flag("stream")
    return Wanted(
        sampling=_sampling(fields),
        max_tokens=next((length for length in lengths if length is not None), None),
        num_choices=fields.whole("n", 1, MAX_CHOICES) or 1,
        stop=_stop(fields),
        is_stream=is_stream,
        has_usage=_has_usage(fields, is_stream=is_stream),
        grammar=grammar,
        json_schema=json_schema,
        num_logprobs=num_logprobs,
    )


def _sampling(fields: Fields) -> Sampling:
    """As OpenAI has it where nothing is said: drawn from all tokens, at a temperature of 1."""
    seed = fields.whole("seed", -_INT64 - 1, _INT64)
    try:
        return Sampling(
            temperature=fields.number("temperature", 1.0, 0.0, 2.0),
            top_p=max(fields.number("top_p", 1.0, 0.0, 1.0), 1e-6),
            top_k=fields.whole("top_k", 0, 2**31 - 1) or 0,
            min_p=fields.number("min_p", 0.0, 0.0, 1.0),
            repeat_penalty=fields.number("repeat_penalty", 1.0, 0.01, 100.0),
            seed=secrets.randbelow(_NUM_SEEDS) if seed is None else seed % _NUM_SEEDS,
            is_repeatable=seed is not None,
        )
    except UsageError as error:
        raise ParameterError(error.message, param=error.message.split()[0], mend=error.mend) from error


def _stop(fields: Fields) -> tuple[str, ...]:
    value = fields.get("stop")
    if value is None:
        return ()
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts[: _MAX_STOPS + 1]):
        raise wrong_type("stop", value, "a string or a list of strings")
    if len(texts) > _MAX_STOPS:
        raise ParameterError(f"stop has {len(texts)} strings; at most {_MAX_STOPS} are taken", param="stop")
    texts = [text for text in texts if text]  # as OpenAI takes an empty one: for none
    if any(len(text) > _MAX_STOP_CHARS for text in texts):
        raise ParameterError(f"a string of stop has more than {_MAX_STOP_CHARS} characters", param="stop")
    return tuple(texts)


def _has_usage(fields: Fields, *, is_stream: bool) -> bool:
    options = fields.get("stream_options")
    if options is None:
        return False
    if not isinstance(options, dict):
        raise wrong_type("stream_options", options, "an object")
    if not is_stream:
        raise ParameterError("stream_options is only allowed when stream is true", param="stream_options")
    inner = Fields(options, known={"include_usage"}, ignored={"include_obfuscation"})
    return inner.flag("include_usage")
