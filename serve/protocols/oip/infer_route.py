"""The route that infers over HTTP: no asyncio task for tensors, and a loop that stays free for long texts."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Awaitable, Mapping
from functools import partial
from typing import Any

from numpy.typing import NDArray

from edgesmith.errors import UnsupportedError
from serve.errors import MalformedError, TooLargeError
from serve.http.message import Buffer, Request, Response
from serve.models.job import Job
from serve.protocols.identity import request_id, sticky_key
from serve.protocols.oip.answer import make_response
from serve.protocols.oip.described import Described, Model, describe_model, split_name
from serve.protocols.oip.inference import Inference, InferenceReader, deadline_of
from serve.protocols.oip.preparation import Asked, Prepared
from serve.protocols.workers import workers
from serve.service import Service

__all__ = ["PROTOCOL", "InferRoute", "decompress"]

PROTOCOL = "oip"

_MAX_COMPRESSED_ON_LOOP = 4096
_MAX_JSON_ON_LOOP = _MAX_OUTPUT_ON_LOOP = 1 << 18
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
                body = await workers().run(partial(decompress, request.body, encoding, limit))
        except Exception as error:
            self._count(request, error)
            raise
        waiting = self._begin(request, body)
        if waiting is not None:
            await waiting

    def _begin(self, request: Request, body: Buffer) -> Awaitable[None] | None:
        json_length = request.header(b"inference-header-content-length")
        if len(body) > _MAX_JSON_ON_LOOP and is_json_above(_MAX_JSON_ON_LOOP, json_length):
            return self._begin_long(request, body, json_length)
        try:
            asked = self._ask(request, self.reader.read(body, json_length))
            call = _Call(request, asked, None if asked.is_plain else asked.prepare())
        except Exception as error:
            self._count(request, error)
            raise
        prepared = call.prepared
        if prepared is not None and not prepared.is_finished:
            return self._finish(call, prepared)
        call.submit()
        return None

    async def _begin_long(self, request: Request, body: Buffer, json_length: bytes | None) -> None:
        try:
            inference = await workers().run(partial(self.reader.read_long, body, json_length))
            asked = self._ask(request, inference)
            call = _Call(request, asked, prepared := asked.prepare())
        except Exception as error:
            self._count(request, error)
            raise
        await self._finish(call, prepared)

    async def _finish(self, call: _Call, prepared: Prepared) -> None:
        try:
            call.prepared = await call.asked.finish(prepared)
        except Exception as error:
            self._count(call.request, error)
            raise
        if not call.request.is_closed:
            call.submit()

    def _ask(self, request: Request, inference: Inference) -> Asked:
        name, is_named = split_name(request.params["model"])
        return Asked(self.service, name, is_named, request.params.get("version"), sticky_key(request), inference)

    def _count(self, request: Request, error: Exception) -> None:
        self.service.failed(split_name(request.params["model"])[0], PROTOCOL, error, received_ns=request.received_ns)


def is_json_above(limit: int, json_length: bytes | None) -> bool:
    """Whether the JSON of a body above a size is so, too: there may be binary tensors behind it."""
    return json_length is None or not json_length.isdigit() or len(json_length) > 12 or int(json_length) > limit


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
    """One request on its way.

    The job holds this by its callback, so that this must let go of the job: what a request holds, its body first of
    all, is free when it is answered, and not when Python next looks for cycles.
    """

    __slots__ = ("asked", "described", "identity", "is_told", "job", "prepared", "request")

    def __init__(self, request: Request, asked: Asked, prepared: Prepared | None) -> None:
        self.request = request
        self.asked = asked
        self.prepared = prepared
        self.identity = asked.inference.id or request_id(request)
        self.described: Described | None = None
        self.job: Job | None = None
        self.is_told = False

    def submit(self) -> None:
        """Hand the tensors over."""
        request, asked, prepared = self.request, self.asked, self.prepared
        timeout_us = asked.inference.timeout_us
        arrays = asked.inference.arrays if prepared is None else prepared.arrays
        model = self._choose() if prepared is None else prepared.model
        self.described = describe_model(model)
        first = next(iter(arrays.values()))
        job = Job(
            arrays,
            self.done,
            first.shape[0] if first.ndim else 1,
            request.received_ns,
            deadline_of(request.received_ns, timeout_us),
            is_own_deadline=timeout_us > 0,
            is_told_at_once=True,
        )
        asked.service.infer(
            asked.name,
            model.version,
            job,
            protocol=PROTOCOL,
            key=asked.key,
            request_id=self.identity,
            is_chosen=asked.version is None,
        )
        if not self.is_told:
            self.job = job
            request.on_close(self.cancel)

    def _choose(self) -> Model:
        asked = self.asked
        try:
            return asked.service.choose(asked.name, asked.version, asked.key)
        except Exception as error:
            asked.service.failed(asked.name, PROTOCOL, error, received_ns=self.request.received_ns)
            raise

    def cancel(self) -> None:
        """The client has gone."""
        if self.job is not None:
            self.job.is_cancelled = True

    def done(self, job: Job) -> None:
        """Answer, or say why not."""
        self.job, self.is_told = None, True
        outputs = job.outputs
        if job.error is not None or outputs is None:
            if not job.is_cancelled:
                self.request.fail(job.error or RuntimeError("a job came back with neither outputs nor error"))
            return
        if self._is_long_to_make(outputs):
            future = asyncio.get_running_loop().run_in_executor(None, self._make, outputs, job.arrays)
            future.add_done_callback(self._answer)
            return
        try:
            response = self._make(outputs, job.arrays)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an answer
            self.request.fail(error)
        else:
            self.request.respond(response)

    def _is_long_to_make(self, outputs: Mapping[str, NDArray[Any]]) -> bool:
        """Whether to write the answer on another thread: texts and JSON take long, bytes go as they are."""
        inference = self.asked.inference
        if inference.is_binary and inference.outputs is None and (self.prepared is None or self.prepared.view is None):
            return False
        if self.prepared is not None and self.prepared.is_long_to_tell:
            return True
        return sum(array.nbytes for array in outputs.values()) > _MAX_OUTPUT_ON_LOOP

    def _answer(self, made: asyncio.Future[Response]) -> None:
        error = made.exception()
        if error is not None:
            self.request.fail(error)
        else:
            self.request.respond(made.result())

    def _make(self, outputs: dict[str, NDArray[Any]], arrays: Mapping[str, NDArray[Any]]) -> Response:
        described, prepared, asked = self.described, self.prepared, self.asked
        assert described is not None
        if prepared is None or prepared.view is None:
            return make_response(described, asked.inference, outputs, self.identity)
        told = prepared.view.tell(outputs, arrays, prepared.examples)
        return make_response(described, asked.inference, told, self.identity, is_text=True, is_named=asked.is_named)
