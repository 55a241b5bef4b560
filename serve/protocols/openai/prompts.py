"""Prompts on their way to a model: counted, and the answer's length settled."""

from __future__ import annotations

from serve.models.text_model import TextModel
from serve.protocols.openai.errors import ParameterError

__all__ = ["check_size", "settle_length"]

_LEAST_TOKENS = 256
_MOST_CHARS_PER_TOKEN = 256  # the longest tokens that there are stand for some hundred spaces


def check_size(model: TextModel, num_chars: int, *, param: str) -> None:
    """Refuse what is too long for the context whatever its tokens are, before it is split into them.

    Raises:
        ParameterError: It is.
    """
    if num_chars > model.context_length * _MOST_CHARS_PER_TOKEN:
        raise ParameterError(
            f"This model's maximum context length is {model.context_length} tokens. However, your text has "
            f"{num_chars:,} characters.",
            param=param,
            code="context_length_exceeded",
            mend="Shorten it.",
        )


def settle_length(model: TextModel, num_prompt: int, asked: int | None, *, most: int, param: str) -> int:
    """How many tokens an answer may have.

    Room is kept for the whole answer while it is written, so that one of unsaid length is given its slot's share of the
    model's room and not all that is left of the context: it would hold up everybody else.

    Args:
        model: Whose context holds prompt and answer.
        num_prompt: Tokens of the prompt.
        asked: By the client; None for as many as a slot has.
        most: Tokens of one answer on this server.
        param: The field that holds the prompt, for the error.

    Raises:
        ParameterError: Prompt and answer do not fit into the context.
    """
    room = model.context_length - num_prompt
    if room < 1 or (asked is not None and asked > room):
        answer = "" if asked is None else f" and {asked} in the completion"
        raise ParameterError(
            f"This model's maximum context length is {model.context_length} tokens. However, you requested "
            f"{num_prompt} tokens in the prompt{answer}.",
            param=param,
            code="context_length_exceeded",
            mend="Shorten the prompt, or ask for fewer tokens.",
        )
    if asked is not None:
        return asked
    share = model.total_tokens // model.num_slots - num_prompt
    return min(room, most, max(share, _LEAST_TOKENS))
