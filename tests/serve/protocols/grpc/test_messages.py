"""Our descriptors against those that the clients were generated from."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest

from serve.protocols.grpc.messages import DATA_TYPES, message_class
from serve.protocols.grpc.methods import METHODS
from tests.serve.protocols.oip.serving import run_client

DUMP = """
import json, sys
if sys.argv[1] == "triton":
    from tritonclient.grpc import model_config_pb2, service_pb2
    files = [service_pb2.DESCRIPTOR, model_config_pb2.DESCRIPTOR]
else:
    from kserve.protocol.grpc import grpc_predict_v2_pb2
    files = [grpc_predict_v2_pb2.DESCRIPTOR]
found = {}
def add(message):
    found[message.name] = {field.name: [field.number, field.type] for field in message.fields}
    for nested in message.nested_types:
        add(nested)
for file in files:
    for message in file.message_types_by_name.values():
        add(message)
kinds = [e for f in files for e in f.enum_types_by_name.values() if e.name == "DataType"]
enums = {v.name: v.number for e in kinds for v in e.values}
methods = [m.name for f in files for s in f.services_by_name.values() for m in s.methods]
print(json.dumps({"messages": found, "enums": enums, "methods": methods}))
"""
ENUM, INT32 = 14, 5
# KServe's own messages for loading name the model where Triton's name a repository.
OTHERS = {"RepositoryModelLoadRequest", "RepositoryModelUnloadRequest"}


def our_fields(name: str) -> dict[str, list[int]] | None:
    try:
        descriptor: Any = message_class(name).DESCRIPTOR
    except KeyError:
        return None
    return {field.name: [field.number, field.type] for field in descriptor.fields}


@pytest.mark.parametrize("client", ["triton", "kserve"])
def test_every_field_has_the_clients_number_and_type(client: str) -> None:
    theirs = run_client(DUMP, client)
    compared = 0
    for name, fields in theirs["messages"].items():
        ours = our_fields(name)
        if ours is None or (name in OTHERS and client == "kserve"):
            continue
        for field, (number, kind) in ours.items():
            if client == "kserve" and field not in fields:
                continue  # KServe has none of Triton's later additions
            wanted_number, wanted_kind = fields[field]
            assert (number, kind) == (wanted_number, INT32 if wanted_kind == ENUM else wanted_kind), (name, field)
            compared += 1
    assert compared > (100 if client == "triton" else 50)


def test_methods_and_data_types_are_tritons() -> None:
    theirs = run_client(DUMP, "triton")
    assert set(METHODS) <= set(theirs["methods"])
    assert theirs["enums"] == DATA_TYPES


def test_message_that_is_not_there_is_an_error() -> None:
    with pytest.raises(KeyError):
        message_class("Nothing")


@pytest.mark.parametrize("library", ["grpc", "google.protobuf"])
def test_missing_library_names_the_extra(library: str) -> None:
    code = f"""
import sys
sys.modules[{library!r}] = None
from edgesmith.errors import MissingExtraError
try:
    from serve.protocols.grpc import GrpcServer
except MissingExtraError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "pip install 'edgesmith[grpc]'" in done.stdout
