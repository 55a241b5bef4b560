"""Protocols of inference servers, one file each: requests made beforehand, and a check of every answer."""

from __future__ import annotations

from bench.load.plan import LoadPlan, ProtocolName
from bench.load.probe import Found, Server, split_url
from bench.load.protocols.base import AnswerError, Checker, StreamReader
from bench.load.protocols.oip import OipChecker, is_oip_path, prepare_oip
from bench.load.protocols.openai import OpenAiChecker, is_openai_path, prepare_openai
from bench.load.target import Target
from edgesmith.errors import ServerError, UsageError

__all__ = ["AnswerError", "Checker", "StreamReader", "open_checker", "prepare_target"]

_ROOTS: dict[ProtocolName, str] = {"oip": "/v2", "openai": "/v1"}


def prepare_target(plan: LoadPlan) -> Target:
    """Ask the server what it serves, and make every request.

    Raises:
        ServerError: Nobody listens, or the server speaks neither protocol.
        UsageError: The data do not fit the model.
        DataError: The data file is damaged or a row does not fit.
        UnsupportedError: The model has a type of tensor that cannot be sent.
    """
    address, path = split_url(plan.url)
    server = Server(address, plan.headers)
    protocol = plan.protocol
    if protocol is None:
        protocol, path = _guess(server, path, plan.model)
    elif not path:
        path = _ROOTS[protocol]
    match protocol:
        case "oip":
            return prepare_oip(plan, server, path)
        case "openai":
            return prepare_openai(plan, server, path)


def open_checker(target: Target) -> Checker:
    """Give what checks the answers to a target's requests."""
    match target.protocol:
        case "oip":
            return OipChecker(target.contract, target.num_rows)
        case "openai":
            return OpenAiChecker(target.contract, target.num_rows)
        case name:
            raise ValueError(f"no protocol {name!r}")


def _guess(server: Server, path: str, model: str | None) -> tuple[ProtocolName, str]:
    """Tell the protocol by the path, else by what the server answers; give the path that fits."""
    if is_oip_path(path):
        return "oip", path
    if is_openai_path(path):
        return "openai", path
    if path and _is_model(server.get(path)):
        return "oip", path
    about = server.get(f"{path}/v2")
    is_oip = about.is_ok and "version" in about.value
    if is_oip and model is not None:
        return "oip", f"{path}/v2"
    listed = server.get(f"{path}/v1/models")
    if listed.is_ok and isinstance(listed.value.get("data"), list):
        return "openai", f"{path}/v1"
    base = server.address.base + path
    if is_oip:
        raise UsageError(
            f"{base}: speaks the Open Inference Protocol ({about.value.get('name', 'no name')}), and the URL names no "
            "model",
            mend=f"Name it: {base}/v2/models/NAME",
        )
    raise ServerError(
        f"{base}: speaks neither the Open Inference Protocol nor OpenAI's: {server.tried}",
        mend=f"Give the model's URL ({base}/v2/models/NAME) or OpenAI's base ({base}/v1).",
    )


def _is_model(found: Found) -> bool:
    return found.is_ok and isinstance(found.value.get("inputs"), list)
