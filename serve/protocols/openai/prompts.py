"""Prompts on their way to a model: counted, and the answer's length settled."""

from __future__ import annotations

from serve.models.text_model import TextModel
from serve.protocols.openai.errors import ParameterError

__all__ = ["settle_length"]


def settle_length(model: TextModel, num_prompt: int, asked: int | None, *, most: int, param: str) -> int:
    """How many tokens an answer may have.

    Args:
        model: Whose context holds prompt and answer.
        num_prompt: Tokens of the prompt.
        asked: By the client; None for as many as there is room for.
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
    return asked if asked is not None else min(room, most)
