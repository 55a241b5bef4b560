"""A small real server of both protocols, with switches for everything that servers do wrong.

Run as a process of its own: `python server.py '{"delay_ms": 5}'` prints its port.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import struct
import sys
from dataclasses import dataclass
from typing import Any


@dataclass
class Switches:
    delay_ms: float = 0.0
    concurrency: int = 0  # requests worked on at once; 0 is no bound
    fault: str = ""  # several, separated by commas, take turns
    every: int = 1  # a fault meets every so-manieth request
    after: int = 0  # and only from this request on
    binary: bool = False
    num_tokens: int = 5
    token_ms: float = 1.0
    chunk_bytes: int = 0  # pieces in which a stream is written; 0 is one event a piece
    usage: str = ""  # "refuse" answers 400 to the wish for it, "send" obeys; otherwise it is passed over
    text_input: bool = True
    batch: int = -1


SWITCHES = Switches()
COUNT = 0
SEMAPHORE: asyncio.Semaphore | None = None
INPUTS = {
    True: [{"name": "text", "datatype": "BYTES", "shape": [-1, 1]}],
    False: [
        {"name": "input_ids", "datatype": "INT64", "shape": [-1, -1]},
        {"name": "attention_mask", "datatype": "INT64", "shape": [-1, -1]},
    ],
}


class Connection(asyncio.Protocol):
    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        transport.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""

    def data_received(self, data: bytes) -> None:
        self.buffer += data
        while (end := self.buffer.find(b"\r\n\r\n")) >= 0:
            head = self.buffer[:end].decode("latin-1")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in head.split("\r\n")[1:])
            }
            size = int(headers.get("content-length", 0))
            if len(self.buffer) < end + 4 + size:
                return
            body = self.buffer[end + 4 : end + 4 + size]
            self.buffer = self.buffer[end + 4 + size :]
            method, path, _ = head.split("\r\n")[0].split(" ")
            if method == "GET":
                self.answer_question(path)
            else:
                asyncio.get_running_loop().create_task(self.work(path, headers, body))

    def send(self, status: int, body: bytes, **headers: str) -> None:
        lines = "".join(f"{name.replace('_', '-')}: {value}\r\n" for name, value in headers.items())
        self.transport.write(f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{lines}\r\n".encode() + body)

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send(status, json.dumps(value).encode(), Content_Type="application/json")

    def answer_question(self, path: str) -> None:
        extensions = ["binary_tensor_data"] if SWITCHES.binary else []
        match path:
            case "/v2":
                self.send_json({"name": "small", "version": "1", "extensions": extensions})
            case "/v2/models/intent" | "/v2/models/intent/versions/1" | "/served/intent":
                outputs = [{"name": "logits", "datatype": "FP32", "shape": [SWITCHES.batch, 3]}]
                self.send_json(
                    {
                        "name": "intent",
                        "versions": ["1"],
                        "platform": "test",
                        "inputs": INPUTS[SWITCHES.text_input],
                        "outputs": outputs,
                    }
                )
            case "/v1/models":
                self.send_json({"object": "list", "data": [{"id": "tiny", "object": "model"}]})
            case "/count":
                self.send_json({"count": COUNT})
            case _:
                self.send_json({"error": f"nothing at {path}"}, 404)

    async def work(self, path: str, headers: dict[str, str], body: bytes) -> None:
        global COUNT
        COUNT += 1
        faults = SWITCHES.fault.split(",")
        is_due = SWITCHES.after < COUNT and COUNT % SWITCHES.every == 0
        fault = faults[COUNT // SWITCHES.every % len(faults)] if is_due else ""
        if fault == "exit":
            os._exit(1)
        if SEMAPHORE is not None:
            async with SEMAPHORE:
                await asyncio.sleep(SWITCHES.delay_ms / 1e3)
        elif SWITCHES.delay_ms:
            await asyncio.sleep(SWITCHES.delay_ms / 1e3)
        match fault:
            case "503" | "429":
                self.send_json({"error": "too many"}, int(fault))
            case "garbage":
                self.send(200, b"<html>hello</html>")
            case "close":
                self.transport.close()
            case "half":
                self.transport.write(b'HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n{"out')
                self.transport.close()
            case "reset":
                linger = struct.pack("ii", 1, 0)
                self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
                self.transport.abort()
            case "hang":
                return
            case "not HTTP":
                self.transport.write(b"SSH-2.0-OpenSSH\r\n\r\n")
            case _ if path.endswith("/infer"):
                self.infer(headers, body, fault)
            case _:
                await self.generate(path, json.loads(body), fault)

    def infer(self, headers: dict[str, str], body: bytes, fault: str) -> None:
        size = headers.get("inference-header-content-length")
        message = json.loads(body if size is None else body[: int(size)])
        declared = {entry["name"] for entry in INPUTS[SWITCHES.text_input]}
        if {entry["name"] for entry in message["inputs"]} != declared:
            return self.send_json({"error": "other inputs"}, 400)
        rows = message["inputs"][0]["shape"][0] + (fault == "wrong rows")
        width = 4 if fault == "wrong shape" else 3
        output = {
            "name": "other" if fault == "missing output" else "logits",
            "datatype": "FP32",
            "shape": [rows, width],
        }
        values: list[Any] = [0.5] * (rows * width)
        if fault == "NaN":
            values[0] = float("nan")
        if fault == "null":
            values[0] = None
        if size is None:
            return self.send_json({"model_name": "intent", "outputs": [output | {"data": values}]})
        blob = struct.pack(f"<{len(values)}f", *values)
        head = json.dumps({"outputs": [output | {"parameters": {"binary_data_size": len(blob)}}]}).encode()
        return self.send(200, head + blob, Inference_Header_Content_Length=str(len(head)))

    async def generate(self, path: str, message: dict[str, Any], fault: str) -> None:
        if path.endswith("/embeddings"):
            inputs = message["input"] if isinstance(message["input"], list) else [message["input"]]
            vectors = [{"embedding": [0.1, 0.2], "index": index} for index, _ in enumerate(inputs)]
            return self.send_json({"data": vectors[: -1 if fault == "wrong rows" else None]})
        is_chat = path.endswith("/chat/completions")
        wants_usage = message.get("stream_options", {}).get("include_usage")
        if wants_usage and SWITCHES.usage == "refuse":
            return self.send_json({"error": "unknown field stream_options"}, 400)
        reason = None if fault == "no finish" else "length"
        if not message.get("stream"):
            text = "" if fault == "empty" else "some words"
            part = {"message": {"content": text}} if is_chat else {"text": text}
            return self.send_json({"choices": [part | {"finish_reason": reason}]})
        self.transport.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        choices: list[dict[str, Any]] = [{"delta": {"role": "assistant", "content": ""}}] if is_chat else []
        token: dict[str, Any] = {"delta": {"content": "wörd "}} if is_chat else {"text": "wörd "}
        choices += [token] * (0 if fault == "empty" else SWITCHES.num_tokens)
        choices.append(({"delta": {}} if is_chat else {"text": ""}) | {"finish_reason": reason})
        for choice in choices:
            await asyncio.sleep(SWITCHES.token_ms / 1e3)
            if fault == "error in the stream":
                self.write_event('{"error": {"message": "out of memory"}}')
            self.write_event(json.dumps({"choices": [choice]}, ensure_ascii=False))
        if wants_usage and SWITCHES.usage == "send":
            self.write_event(json.dumps({"choices": [], "usage": {"completion_tokens": 3 * SWITCHES.num_tokens}}))
        self.write_event("[DONE]")
        self.transport.write(b"0\r\n\r\n")
        return None

    def write_event(self, data: str) -> None:
        content = f"data: {data}\n\n".encode()
        step = SWITCHES.chunk_bytes or len(content)
        for begin in range(0, len(content), step):
            piece = content[begin : begin + step]
            self.transport.write(b"%x\r\n%s\r\n" % (len(piece), piece))


async def main() -> None:
    global SEMAPHORE
    SEMAPHORE = asyncio.Semaphore(SWITCHES.concurrency) if SWITCHES.concurrency else None
    server = await asyncio.get_running_loop().create_server(Connection, "127.0.0.1", 0, backlog=4096)
    sys.stdout.write(f"{server.sockets[0].getsockname()[1]}\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    SWITCHES = Switches(**json.loads(sys.argv[1] if len(sys.argv) > 1 else "{}"))
    asyncio.run(main())
