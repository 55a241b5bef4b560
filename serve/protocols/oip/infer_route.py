"""The route that infers over HTTP: no asyncio task for tensors, and a loop that stays free for long texts."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from edgesmith.errors import UnsupportedError, UsageError
from edgesmith.tasks.base import Example
from serve.errors import MalformedError, TooLargeError
from serve.http.message import Buffer, Request, Response
from serve.models.job import Job
from serve.protocols.oip.answer import make_response
from serve.protocols.oip.described import Described, describe_model, split_name
from serve.protocols.oip.inference import Inference, InferenceReader, deadline_of
from serve.protocols.oip.text_view import TextView
from serve.service import Service

__all__ = ["PROTOCOL", "InferRoute", "choose_view", "decompress", "is_long"]

PROTOCOL = "oip"

_MAX_TEXT_ON_LOOP = 2048  # characters whose tokens take less time than handing them to a thread and back
_MAX_COMPRESSED_ON_LOOP = 4096
_MAX_OUTPUT_ON_LOOP = 1 << 18
_WINDOW_BITS = {b"gzip": 31, b"deflate": 15}


class InferRoute:
    """Handles `POST /v2/models/{model}/infer`, with and without a version.

    Args:
        service: Where the models are.
    """

    def __init__(self, service: Service) -> None:
        self.service = service
        self.limits = service.limits
        self.reader = InferenceReader(service.limits)

    def __call__(self, request: Request) -> Awaitable[None] | None:
        """Read the request and hand it over; the answer goes out from a callback."""
        encoding = request.header(b"content-encoding")
        if encoding is None or encoding == b"identity":
            return self._begin(request, request.body)
        return self._begin_compressed(request, encoding.lower())

    async def _begin_compressed(self, request: Request, encoding: bytes) -> None:
        limit = self.limits.max_body_bytes
        try:
            if len(request.body) <= _MAX_COMPRESSED_ON_LOOP:
                body = decompress(request.body, encoding, limit)
            else:
                body = await asyncio.to_thread(decompress, request.body, encoding, limit)
        except Exception as error:
            self.service.failed(request.params["model"], PROTOCOL, error, received_ns=request.received_ns)
            raise
        waiting = self._begin(request, body)
        if waiting is not None:
            await waiting

    def _begin(self, request: Request, body: Buffer) -> Awaitable[None] | None:
        try:
            inference = self.reader.read(body, request.header(b"inference-header-content-length"))
            name, is_named = split_name(request.params["model"])
            call = _Call(self.service, request, inference, name)
            arrays: Mapping[str, NDArray[Any]] = inference.arrays
            if is_named or inference.outputs is not None or TextView.takes(arrays):
                described = describe_model(self.service.model(name, request.params.get("version")))
                view = choose_view(described, inference, name, is_named=is_named)
                if view is not None:
                    examples = view.examples(arrays)
                    call.expect_text(view, examples, is_named=is_named)
                    if is_long(examples):
                        return call.submit_long(examples)
                    arrays = view.task.encode(examples)
        except Exception as error:
            self.service.failed(request.params["model"], PROTOCOL, error, received_ns=request.received_ns)
            raise
        call.submit(arrays)
        return None


def choose_view(described: Described, inference: Inference, name: str, *, is_named: bool) -> TextView | None:
    """Say how the model takes the texts of a request; None for tensors of the graph.

    Raises:
        UnsupportedError: It was asked by its name for texts, and takes none.
        UsageError: An output is asked for that there is not.
    """
    view = described.text
    if view is None and is_named:
        raise UnsupportedError(f"{name} has no task that takes texts", mend=f"Send tensors to {name}.")
    if not is_named and (
        not TextView.takes(inference.arrays) or any(tensor.name in inference.arrays for tensor in described.inputs)
    ):
        view = None
    outputs = described.outputs if view is None else (*view.outputs, *view.pair_outputs)
    names = [output.name for output in outputs]
    for wish in inference.outputs or ():
        if wish.name not in names:
            raise UsageError(f"{name} has no output {wish.name[:80]!r}", mend=f"It has {', '.join(names) or 'none'}.")
    return view


def is_long(examples: Sequence[Example]) -> bool:
    """Whether texts are better made tensors on another thread than the loop's."""
    return sum(len(example.text) + len(example.text_pair or "") for example in examples) > _MAX_TEXT_ON_LOOP


def decompress(body: Buffer, encoding: bytes, limit: int) -> bytes:
    """Undo a body's compression, up to a size.

    Args:
        body: As it came.
        encoding: `gzip` or `deflate` (which is zlib's form).
        limit: The most bytes that may come out.

    Raises:
        UnsupportedError: Another encoding.
        MalformedError: It is damaged or not whole.
        TooLargeError: More would come out.
    """
    bits = _WINDOW_BITS.get(encoding)
    if bits is None:
        raise UnsupportedError(
            f"the body has the encoding {encoding[:40].decode('latin-1')!r}", mend="Known are gzip and deflate."
        )
    decoder = zlib.decompressobj(bits)
    try:
        plain = decoder.decompress(body, limit + 1)
    except zlib.error as error:
        raise MalformedError(f"the compressed body is damaged: {error}") from error
    if len(plain) > limit:
        raise TooLargeError(f"the body has more than {limit} bytes when it is decompressed")
    if not decoder.eof or decoder.unused_data:
        raise MalformedError("the compressed body is not whole, or has more behind its end")
    return plain


class _Call:
    """One request on its way."""

    __slots__ = (
        "arrays",
        "described",
        "has_pairs",
        "inference",
        "is_named",
        "job",
        "name",
        "request",
        "service",
        "view",
    )

    def __init__(self, service: Service, request: Request, inference: Inference, name: str) -> None:
        self.service = service
        self.request = request
        self.inference = inference
        self.name = name
        self.view: TextView | None = None
        self.is_named = False
        self.has_pairs = False
        self.described: Described | None = None
        self.job: Job | None = None
        self.arrays: Mapping[str, NDArray[Any]] = {}

    def expect_text(self, view: TextView, examples: Sequence[Example], *, is_named: bool) -> None:
        """Answer with what `view` tells of the graph's outputs."""
        self.view, self.is_named = view, is_named
        self.has_pairs = examples[0].text_pair is not None

    async def submit_long(self, examples: Sequence[Example]) -> None:
        """Make tensors of texts on another thread, then hand them over."""
        assert self.view is not None
        try:
            arrays = await asyncio.to_thread(self.view.task.encode, examples)
        except Exception as error:
            self.service.failed(self.name, PROTOCOL, error, received_ns=self.request.received_ns)
            raise
        if not self.request.is_closed:
            self.submit(arrays)

    def submit(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Hand the tensors over."""
        request, inference = self.request, self.inference
        first = next(iter(arrays.values()))
        self.arrays = arrays
        key = request.header(b"x-edgesmith-key")
        job = self.job = Job(
            arrays,
            self.done,
            first.shape[0] if first.ndim else 1,
            request.received_ns,
            deadline_of(request.received_ns, inference.timeout_us),
        )
        model = self.service.infer(
            self.name,
            request.params.get("version"),
            job,
            protocol=PROTOCOL,
            key=None if key is None else key.decode("latin-1"),
            request_id=inference.id,
        )
        self.described = describe_model(model)
        request.on_close(self.cancel)

    def cancel(self) -> None:
        """The client has gone."""
        if self.job is not None:
            self.job.is_cancelled = True

    def done(self, job: Job) -> None:
        """Answer, or say why not."""
        outputs = job.outputs
        if job.error is not None or outputs is None:
            if not job.is_cancelled:
                self.request.fail(job.error or RuntimeError("a job came back with neither outputs nor error"))
            return
        if self.view is not None and sum(array.nbytes for array in outputs.values()) > _MAX_OUTPUT_ON_LOOP:
            future = asyncio.get_running_loop().run_in_executor(None, self._make, outputs)
            future.add_done_callback(self._answer)
            return
        try:
            response = self._make(outputs)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self.request.fail(error)
        else:
            self.request.respond(response)

    def _answer(self, made: asyncio.Future[Response]) -> None:
        error = made.exception()
        if error is not None:
            self.request.fail(error)
        else:
            self.request.respond(made.result())

    def _make(self, outputs: dict[str, NDArray[Any]]) -> Response:
        described, view = self.described, self.view
        assert described is not None
        if view is None:
            return make_response(described, self.inference, outputs)
        told: Mapping[str, NDArray[Any]] = view.tell(outputs, self.arrays, has_pairs=self.has_pairs)
        return make_response(described, self.inference, told, is_text=True, is_named=self.is_named)
