"""What protocols ask of a language model beside texts: prompts ready to be written on, and vectors.

Both may meet a model that is replaced while they work, which is nothing that its client should hear of.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final, TypeVar
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from edgesmith.errors import EdgesmithError, UnsupportedError
from serve.errors import DeadlineError, NotReadyError, OverloadedError
from serve.models.text_model import TextModel
from serve.protocols.rows import Call
from serve.protocols.workers import workers

__all__ = ["make_vectors", "prepare_prompts"]

Result = TypeVar("Result")

_MAX_SWAPS: Final = 1
_waiting: WeakKeyDictionary[TextModel, int] = WeakKeyDictionary()


async def prepare_prompts(
    call: Call, model: TextModel, prepare: Callable[[TextModel], Result]
) -> tuple[TextModel, Result]:
    """Run on a worker what needs a model's tokenizer or template; once more if the model was replaced meanwhile.

    Args:
        call: The request.
        model: From `choose_model`.
        prepare: Thread-safe; reads nothing of the request but what it was given.

    Returns:
        The model that was prepared for, and what `prepare` gave.

    Raises:
        EdgesmithError: What `prepare` raised of the model that is there.
    """
    for _ in range(_MAX_SWAPS):
        chosen = model
        try:
            result = await workers("prompts").run(partial(prepare, chosen))
        except EdgesmithError:
            model = _successor(call, chosen)
            if model is chosen:
                raise
        else:
            if (model := _successor(call, chosen)) is chosen:
                return chosen, result
    return model, await workers("prompts").run(partial(prepare, model))


async def make_vectors(
    call: Call, model: TextModel, texts: Sequence[str]
) -> tuple[TextModel, list[NDArray[np.float32]], int]:
    """Make a vector of each text, all by one version of the model, and count the request.

    Args:
        call: The request.
        model: From `choose_model`.
        texts: At least one.

    Returns:
        The model that answered, the vectors, and the tokens that were read for them.

    Raises:
        OverloadedError: As many requests wait for vectors of this model as may wait for its texts.
        DeadlineError: The model's time for one request was over.
        EdgesmithError: A text is not what the model takes.
    """
    try:
        for _ in range(_MAX_SWAPS):
            try:
                rows, num_tokens = await _try_vectors(model, texts)
                break
            except EdgesmithError:
                found = _successor(call, model)
                if found is model:
                    raise
                model = found
        else:
            rows, num_tokens = await _try_vectors(model, texts)
    except EdgesmithError as error:
        call.service.failed(call.name, call.protocol, error, received_ns=call.request.received_ns)
        raise
    duration_ns = time.monotonic_ns() - call.request.received_ns
    call.service.metrics.count_request(model.name, model.version, call.protocol, "ok", duration_ns)
    return model, rows, num_tokens


def _successor(call: Call, model: TextModel) -> TextModel:
    """The model that has this one's name and version now.

    Raises:
        RequestError: There is none.
        UnsupportedError: It is another kind of model.
    """
    found = call.service.model(call.name, model.version)
    if not isinstance(found, TextModel) or found.can_generate != model.can_generate:
        raise UnsupportedError(f"the model {call.name!r} was replaced by one of another kind")
    return found


async def _try_vectors(model: TextModel, texts: Sequence[str]) -> tuple[list[NDArray[np.float32]], int]:
    num_waiting = _waiting.get(model, 0)
    if num_waiting >= model.spec.max_queue:
        raise OverloadedError(
            f"{num_waiting} requests wait for vectors of {model.name} already", mend="Try again a little later."
        )
    _waiting[model] = num_waiting + 1
    try:
        async with asyncio.timeout(model.spec.timeout_s):
            rows = list(await model.embed(texts))
            num_tokens = await workers("prompts").run(lambda: sum(model.count_tokens(text) for text in texts))
    except TimeoutError as error:
        raise DeadlineError("the time was over before all vectors were made", mend="Send fewer texts.") from error
    except asyncio.CancelledError:
        if (task := asyncio.current_task()) is not None and task.cancelling():
            raise
        raise NotReadyError(f"{model.name} is being unloaded", mend="Try again a little later.") from None
    finally:
        _waiting[model] -= 1
    return rows, num_tokens
