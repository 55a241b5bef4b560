from __future__ import annotations

import pytest
from pydantic import ValidationError

from edgesmith.gates import AccuracyGate, Gates, LatencyGate, MachineGates, SizeGate, SpeedGate

ALL = {
    "accuracy": [{"max_drop": 0.01}, {"metric": "f1_macro", "min": 0.8}],
    "flips": {"max_rate": 0.02},
    "divergence": {"max_mean_kld": 0.01},
    "perplexity": {"max_ratio": 1.03, "max": 40.0},
    "size": {"max_mb": 12, "min_reduction": 3.5, "max_growth": 0.02, "of": "artifact"},
    "download": {"max_mb": 9},
    "memory": {"max_mb": 150},
    "start": {"max_ms": 500},
    "latency": [{"max_ms": 20}, {"scenario": "server", "rate": 50, "max_ms": 30}, {"scenario": "load", "max_ms": 40}],
    "throughput": {"min_per_second": 100},
    "cpu": {"max_ms": 8},
    "generation": {"min_tokens_per_second": 20, "max_ttft_ms": 500},
    "speed": {"min_speedup": 2},
    "regression": {"max_slowdown": 0.05, "of": "wall", "max_growth": 0.02, "max_drop": 0.01, "metric": "mcc"},
    "devices": {"*Cortex-A76*": {"latency": {"max_ms": 90}, "memory": {"max_mb": 90}}},
}


def test_one_limit_and_a_list_of_one_are_the_same() -> None:
    one = Gates.model_validate({"accuracy": {"max_drop": 0.01}, "latency": {"max_ms": 5}})
    assert one == Gates.model_validate({"accuracy": [{"max_drop": 0.01}], "latency": [{"max_ms": 5}]})
    assert one == Gates(accuracy=(AccuracyGate(max_drop=0.01),), latency=(LatencyGate(max_ms=5),))
    assert not Gates.model_validate({"accuracy": None, "latency": []}).are_set


def test_gates_survive_a_round_trip() -> None:
    gates = Gates.model_validate(ALL)
    assert Gates.model_validate(gates.model_dump()) == gates
    assert Gates.model_validate_json(gates.model_dump_json()) == gates


def test_every_key_of_the_schema_is_described() -> None:
    schema = Gates.model_json_schema()
    for name, model in {"Gates": schema, **schema["$defs"]}.items():
        for key, value in model["properties"].items():
            assert value.get("description"), f"{name}.{key}"
    assert set(schema["properties"]) == set(ALL)


def test_a_fault_in_one_limit_keeps_its_place() -> None:
    with pytest.raises(ValidationError) as one:
        Gates.model_validate({"accuracy": {"max_dorp": 0.01}})
    assert [fault["loc"] for fault in one.value.errors()] == [("accuracy", "max_dorp")]
    with pytest.raises(ValidationError) as listed:
        Gates.model_validate({"latency": [{"max_ms": 5}, {"max_ms": -5}]})
    assert [fault["loc"] for fault in listed.value.errors()] == [("latency", 1, "max_ms")]


def test_what_must_be_measured_follows_from_the_gates() -> None:
    gates = Gates.model_validate(ALL)
    assert gates.scenarios == {("single", None), ("server", 50.0), ("load", None)}
    assert gates.metrics == (None, "f1_macro", "mcc")
    assert gates.needs_baseline
    assert gates.needs_classes
    assert gates.needs_throughput
    bare = Gates(size=SizeGate(max_mb=5))
    assert bare.are_set
    assert bare.scenarios == frozenset()
    assert not bare.needs_baseline
    assert Gates.model_validate({"cpu": {"max_ms": 5}}).scenarios == {("single", None)}
    growth = Gates.model_validate({"regression": {"max_growth": 0.1}})
    assert growth.needs_baseline
    assert not growth.kinds()
    device = Gates(devices={"*": MachineGates(speed=SpeedGate(min_speedup=2))})
    assert device.needs_baseline


def test_absolute_gates_are_those_without_a_baseline() -> None:
    absolute = Gates.model_validate(ALL).absolute
    assert not absolute.needs_baseline
    assert absolute == absolute.absolute
    assert [(one.metric, one.max_drop, one.min) for one in absolute.accuracy] == [("f1_macro", None, 0.8)]
    assert absolute.size is not None
    assert (absolute.size.max_mb, absolute.size.min_reduction, absolute.size.max_growth) == (12, None, None)
    assert absolute.devices == Gates.model_validate(ALL).devices
    only = Gates.model_validate({"speed": {"min_speedup": 2}, "devices": {"*": {"speed": {"min_speedup": 3}}}})
    assert not only.absolute.are_set
