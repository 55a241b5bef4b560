"""Triton's configuration as text, against protobuf's own reader and writer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgesmith.errors import ArtifactError
from export.serving.config_text import read_config_text, write_config_text
from tests.serve.protocols.oip.serving import run_client

TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
DIMS = st.lists(st.integers(-1, 2**62), min_size=1, max_size=4)
TYPES = st.sampled_from(["TYPE_FP32", "TYPE_INT64", "TYPE_STRING"])
INPUTS = st.fixed_dictionaries({"name": TEXTS, "data_type": TYPES, "dims": DIMS})
OUTPUTS = st.fixed_dictionaries({"name": TEXTS, "data_type": TYPES, "dims": DIMS}, optional={"label_filename": TEXTS})
SAMPLES = st.fixed_dictionaries({"data_type": TYPES, "dims": DIMS, "zero_data": st.booleans()})
CONFIGS = st.fixed_dictionaries(
    {"name": TEXTS, "max_batch_size": st.integers(0, 2**31 - 1)},
    optional={
        "version_policy": st.just({"all": {}}),
        "input": st.lists(INPUTS, min_size=1, max_size=3),
        "output": st.lists(OUTPUTS, min_size=1, max_size=3),
        "dynamic_batching": st.fixed_dictionaries({"max_queue_delay_microseconds": st.integers(0, 2**63)}),
        "parameters": st.dictionaries(TEXTS, st.fixed_dictionaries({"string_value": TEXTS}), min_size=1, max_size=3),
        "model_warmup": st.lists(
            st.fixed_dictionaries({"name": TEXTS, "inputs": st.dictionaries(TEXTS, SAMPLES, min_size=1, max_size=2)}),
            min_size=1,
            max_size=2,
        ),
    },
)
REWRITE = """
import json, sys
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
texts = json.load(open(sys.argv[1]))
print(json.dumps([text_format.MessageToString(text_format.Parse(one, ModelConfig()), as_utf8=True) for one in texts]))
"""


def without_defaults(value: Any, name: str = "") -> Any:
    """As protobuf writes it: numbers that are 0, texts that are empty and what is false are left out of messages."""
    if isinstance(value, dict):
        found = {key: without_defaults(inner, key) for key, inner in value.items()}
        is_map = name in ("parameters", "inputs")
        return {key: inner for key, inner in found.items() if is_map or inner not in (0, "", False) or inner == {}}
    return [without_defaults(one) for one in value] if isinstance(value, list) else value


@given(CONFIGS)
def test_what_is_written_is_read_back(config: dict[str, Any]):
    assert read_config_text(write_config_text(config)) == config


def test_protobuf_reads_what_is_written_and_what_it_writes_is_read(repository: Path, tmp_path: Path):
    configs = [read_config_text(path.read_text()) for path in sorted(repository.glob("*/config.pbtxt"))]
    odd = {"name": 'a "b" \\ \n\t\x01é', "input": [{"name": "x'", "data_type": "TYPE_FP32", "dims": [-1, 3]}]}
    configs.append(odd)
    assert len(configs) > 6
    texts = tmp_path / "texts.json"
    texts.write_text(json.dumps([write_config_text(one) for one in configs]))
    rewritten = run_client(REWRITE, str(texts))
    assert [read_config_text(one) for one in rewritten] == [without_defaults(one) for one in configs]
    assert rewritten[0] != write_config_text(configs[0])  # another layout: it was not merely copied


def test_other_layouts_of_the_format_are_read():
    text = 'name:"a" # so\ninput [ { name: "x" dims: [1,2] }, { name: "y" dims: 3 dims: 4 } ]'
    assert read_config_text(text) == {
        "name": "a",
        "input": [{"name": "x", "dims": [1, 2]}, {"name": "y", "dims": [3, 4]}],
    }


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('name: "a"\nnane: "b"', ":2: ModelConfig has no field 'nane'"),
        ('name: "a"\n\nname: "b"', ":3: ModelConfig has name twice"),
        ("name: a", "'a' is no string"),
        ('max_batch_size: "4"', "is no int"),
        ("max_batch_size: 4.5", "'.5' is no token"),
        ('name: "a', "is no token"),
        ('input { name: "a"', "the text ends inside ModelInput"),
        ("input { dims: [ 1 2 ] }", "'2' stands where ',' belongs"),
        ('input { name: ["a"] }', "a list stands where one value belongs"),
        ('name "a"', "stands where ':' belongs"),
        ('parameters { key: "a" value { } } parameters { key: "a" value { } }', "the key 'a' twice"),
        ("}", "no field '}'"),
        ("name:", "'the end' stands where 'a value' belongs"),
    ],
)
def test_what_is_no_configuration_is_refused_with_its_line(text: str, said: str):
    with pytest.raises(ArtifactError) as caught:
        read_config_text(text, "news/config.pbtxt")
    assert str(caught.value).startswith("news/config.pbtxt:")
    assert said in str(caught.value)
