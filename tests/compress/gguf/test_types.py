"""The tables of types against the installed library: names and numbers, sizes, and what needs a matrix, by effect."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import llama_cpp
import pytest

from compress.gguf.quantize import GgufQuantConfig, GgufQuantizer
from compress.gguf.types import FILE_TYPES, TENSOR_TYPES, find_file_type, find_tensor_type
from compress.gguf.worker_process import QuantizeFailedError, QuantizeJob, WorkerProcess
from edgesmith.errors import UsageError
from serve.runtime.gguf_file import BLOCK_TYPES
from tests.compress.gguf.models_built import LAYER, seeded_imatrix, stored_bytes


def test_presets_are_those_of_the_library() -> None:
    offered = {
        name.removeprefix("LLAMA_FTYPE_").removeprefix("MOSTLY_").removeprefix("ALL_"): number
        for name, number in vars(llama_cpp).items()
        if name.startswith("LLAMA_FTYPE_") and not name.endswith("GUESSED")
    }
    assert offered.pop("NVFP4") == 39  # named, but refused: see the next test
    readable = {block.name for block in BLOCK_TYPES.values()}
    if "Q2_0" not in readable:
        del offered["Q2_0"]
    assert {name: preset.number for name, preset in FILE_TYPES.items()} == offered


def test_presets_need_a_matrix_exactly_where_the_library_says_so(fitting_model: Path, tmp_path: Path) -> None:
    worker = WorkerProcess()
    needing = set()
    for name, preset in FILE_TYPES.items():
        job = QuantizeJob(source=str(fitting_model), out="", file_type=preset.number, dry_run=True)
        if any("will require an imatrix" in line for line in worker.run(job, {}, lambda _: None)):
            needing.add(name)
    with pytest.raises(QuantizeFailedError, match="invalid output file type"):
        worker.run(QuantizeJob(source=str(fitting_model), out="", file_type=39, dry_run=True), {}, lambda _: None)
    worker.close()
    assert needing == {name for name, preset in FILE_TYPES.items() if preset.needs_imatrix}


SLOWLY_MADE = ("IQ1_S", "IQ1_M")  # their tables take ten seconds each


@pytest.mark.parametrize(
    "names",
    [
        tuple(name for name in TENSOR_TYPES if name not in SLOWLY_MADE),
        pytest.param(SLOWLY_MADE, marks=pytest.mark.slow),
    ],
    ids=["most", "slowly made"],
)
def test_a_matrix_changes_exactly_the_types_that_say_so(
    names: tuple[str, ...], make_model: Callable[..., Path], quantizer: GgufQuantizer, tmp_path: Path
) -> None:
    source = make_model(inner=256, num_layers=8, same_layers=True)
    kinds = [f"blk.{{}}.{kind}.weight" for kind in sorted(LAYER)]
    # One type in two layers that are the same but for their importance.
    pairs = {
        name: (kinds[index % 7].format(index // 7), kinds[index % 7].format(4 + index // 7))
        for index, name in enumerate(names)
    }
    config = GgufQuantConfig(type="F32", tensor_types={one: name for name, pair in pairs.items() for one in pair})
    done = quantizer.quantize(source, tmp_path / "out.gguf", config, imatrix=seeded_imatrix(source))
    written, before = stored_bytes(done.path), stored_bytes(source)
    assert all(before[one] == before[other] for one, other in pairs.values())
    changed = {name for name, (one, other) in pairs.items() if written[one] != written[other]}
    assert changed == {name for name in names if TENSOR_TYPES[name].uses_imatrix}


def test_block_sizes_are_those_of_the_gguf_package() -> None:
    sizes = {kind.name: size for kind, size in gguf.GGML_QUANT_SIZES.items()}
    for name, kind in TENSOR_TYPES.items():
        if name in sizes:
            assert (kind.num_values, kind.block_bytes) == sizes[name]
            assert gguf.GGMLQuantizationType[name] == kind.number
    assert {"Q4_K", "IQ1_S", "MXFP4", "F32"} <= sizes.keys() & TENSOR_TYPES.keys()
    assert TENSOR_TYPES["Q4_K"].bits_per_weight == 4.5
    assert TENSOR_TYPES["IQ4_XS"].size_bytes(512) == 272


@pytest.mark.parametrize(("given", "found"), [("q4_k_m", "Q4_K_M"), ("Q4_K", "Q4_K_M"), ("iq3_xxs", "IQ3_XXS")])
def test_presets_are_found_in_any_case_and_by_their_short_names(given: str, found: str) -> None:
    assert find_file_type(given).name == found


@pytest.mark.parametrize(
    ("given", "nearest"), [("Q4KM", "Q4_K_M"), ("int8", "IQ4_NL|Q8_0|.*"), ("IQ5_XS", "IQ[234]_XS")]
)
def test_unknown_presets_name_the_nearest(given: str, nearest: str) -> None:
    with pytest.raises(UsageError, match=rf"(?s)'{given}' is no type.*({nearest})"):
        find_file_type(given)


def test_a_preset_is_no_type_for_one_tensor() -> None:
    with pytest.raises(UsageError, match=r"(?s)'Q4_K_M' is a type for files.*Did you mean Q4_K\?"):
        find_tensor_type("Q4_K_M")
    with pytest.raises(UsageError, match="Q8_1"):  # of activations: nothing is stored in it
        GgufQuantConfig(tensor_types={"output.weight": "Q8_1"})
