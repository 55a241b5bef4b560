"""Quantizing a file: the bytes, what the result tells, and everything that is refused."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import gguf
import numpy as np
import pytest

from compress.gguf.collect_runtime import collect_imatrix_runtime
from compress.gguf.imatrix import ImatrixEntry
from compress.gguf.quantize import GgufQuantConfig, GgufQuantizer, quantize_gguf
from compress.gguf.types import FILE_TYPES, TENSOR_TYPES
from compress.gguf.worker_process import QuantizeJob, WorkerProcess
from edgesmith.errors import ArtifactError, StorageError, UnsupportedError, UsageError
from edgesmith.progress import Advance, Progress
from export.gguf.to_gguf import to_gguf
from serve.runtime.gguf_file import read_gguf
from serve.runtime.llama_library import LlamaContext, LlamaModel
from tests.compress.gguf.models_built import seeded_imatrix, stored_bytes, values_of, write_llama

DOWN = "blk.1.ffn_down.weight"


def test_blocks_are_those_of_the_gguf_package(fitting_model: Path, quantizer: GgufQuantizer, tmp_path: Path) -> None:
    matrices = sorted(seeded_imatrix(fitting_model).entries)
    types = dict(zip(matrices, ("F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "TQ1_0", "TQ2_0"), strict=False))
    done = quantizer.quantize(fitting_model, tmp_path / "out.gguf", GgufQuantConfig(type="F32", tensor_types=types))
    written = stored_bytes(done.path)
    for tensor, name in types.items():
        expected = gguf.quants.quantize(values_of(fitting_model, tensor), gguf.GGMLQuantizationType[name])
        assert written[tensor] == expected.tobytes(), name


def test_bytes_are_the_same_whatever_the_number_of_threads(make_model: Callable[..., Path], tmp_path: Path) -> None:
    source = make_model(inner=1024, num_layers=1)  # more rows than one thread takes at a time
    written = set()
    for threads in (1, 2, 3):
        out = tmp_path / f"{threads}.gguf"
        quantize_gguf(source, out, imatrix=seeded_imatrix(source), threads=threads)
        written.add(out.read_bytes())
    assert len(written) == 1


def test_where_columns_fit_nothing_falls_back(fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer) -> None:
    done = quantizer.quantize(fitting_model, tmp_path / "out.gguf")
    assert done.fallbacks == ()
    assert {one.type for one in done.tensors} == {"F32", "Q4_K", "Q6_K"}
    assert done.size_bytes == (tmp_path / "out.gguf").stat().st_size
    assert 4.5 < done.bits_per_weight < 6.5625
    assert done.without_imatrix == ()


def test_where_columns_do_not_fit_the_result_says_what_was_wanted(
    make_model: Callable[..., Path], tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    done = quantizer.quantize(make_model(width=192, inner=256), tmp_path / "out.gguf")
    by_name = {one.name: one for one in done.tensors}
    assert (by_name["blk.0.attn_q.weight"].wanted, by_name["blk.0.attn_q.weight"].type) == ("Q4_K", "Q5_0")
    assert by_name["blk.0.ffn_down.weight"].wanted is None
    assert len(done.fallbacks) == 12
    assert "12 tensors in another type" in done.summary()


def test_columns_that_fit_no_block_stay_in_sixteen_bits(
    make_model: Callable[..., Path], tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    done = quantizer.quantize(make_model(width=80, inner=96), tmp_path / "out.gguf", GgufQuantConfig(type="Q8_0"))
    types = {one.name: (one.type, one.wanted) for one in done.tensors}
    assert types["blk.0.attn_q.weight"] == ("F16", "Q8_0")
    assert types["blk.0.ffn_down.weight"] == ("Q8_0", None)


def test_naming_one_tensor_changes_no_other(fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer) -> None:
    plain, named = tmp_path / "plain.gguf", tmp_path / "named.gguf"
    quantizer.quantize(fitting_model, plain)
    done = quantizer.quantize(fitting_model, named, GgufQuantConfig(tensor_types={"blk.0.attn_v.weight": "Q8_0"}))
    before, after = stored_bytes(plain), stored_bytes(named)
    assert [name for name in before if before[name] != after[name]] == ["blk.0.attn_v.weight"]
    assert {one.name: one.type for one in done.tensors}["blk.0.attn_v.weight"] == "Q8_0"


def test_of_patterns_the_last_that_matches_counts(
    fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    config = GgufQuantConfig(
        tensor_types={"*": "Q4_0", "blk.*.ffn_*.weight": "q5_0", "blk.1.ffn_up.weight": "IQ4_XS"}, type="Q8_0"
    )
    done = quantizer.quantize(fitting_model, tmp_path / "out.gguf", config)
    types = {one.name: one.type for one in done.tensors}
    assert [types[f"blk.1.{kind}.weight"] for kind in ("attn_q", "ffn_gate", "ffn_up", "ffn_norm")] == [
        "Q4_0", "Q5_0", "IQ4_XS", "F32",
    ]  # fmt: skip
    assert types["token_embd.weight"] == "Q4_0"


@pytest.mark.parametrize("preset", ["F32", "F16"])
def test_a_float_preset_quantizes_only_what_is_named(
    preset: str, fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    config = GgufQuantConfig(type=preset, tensor_types={DOWN: "Q3_K"})
    done = quantizer.quantize(fitting_model, tmp_path / "out.gguf", config)
    assert {one.name: one.type for one in done.tensors if one.is_quantized} == {DOWN: "Q3_K"}
    assert read_gguf(done.path).metadata["general.file_type"] == FILE_TYPES[preset].number
    if preset == "F32":
        before, after = stored_bytes(fitting_model), stored_bytes(done.path)
        assert all(before[name] == after[name] for name in before if name != DOWN)


def test_a_matrix_lowers_the_error_that_it_weighs(
    fitting_model: Path, quantizer: GgufQuantizer, tmp_path: Path
) -> None:
    matrix = seeded_imatrix(fitting_model)
    types = dict(zip(matrix.entries, ("Q4_K", "IQ4_XS", "Q3_K", "IQ3_S", "Q2_K", "Q4_0"), strict=False))
    errors = []
    for given in (None, matrix):
        done = quantizer.quantize(
            fitting_model, tmp_path / "out.gguf", GgufQuantConfig(type="F32", tensor_types=types), imatrix=given
        )
        differences = {name: values_of(done.path, name) - values_of(fitting_model, name) for name in types}
        errors.append([float((one**2 @ matrix.entries[name].means()).sum()) for name, one in differences.items()])
    assert all(weighed < 0.9 * plain for plain, weighed in zip(*errors, strict=True))


def test_the_result_says_where_the_matrix_was_used(
    fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    matrix = seeded_imatrix(fitting_model, without=(DOWN,))
    config = GgufQuantConfig(tensor_types={"blk.0.attn_k.weight": "Q8_0"})
    done = quantizer.quantize(fitting_model, tmp_path / "out.gguf", config, imatrix=matrix)
    assert done.without_imatrix == (DOWN,)
    used = {one.name for one in done.tensors if one.used_imatrix}
    assert used == matrix.entries.keys() - {"blk.0.attn_k.weight"}  # Q8_0 takes no notice of it
    metadata = read_gguf(done.path).metadata
    assert metadata["quantize.imatrix.dataset"] == "seeded"
    assert metadata["quantize.imatrix.chunks_count"] == 3


def test_a_second_rounding_is_refused(fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer) -> None:
    done = quantizer.quantize(fitting_model, tmp_path / "q8.gguf", GgufQuantConfig(type="Q8_0"))
    with pytest.raises(UnsupportedError, match="is Q8_0 already"):
        quantizer.quantize(done.path, tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


def test_a_truncated_source_never_reaches_the_library(
    fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(fitting_model.read_bytes()[:-100])
    with pytest.raises(ArtifactError, match="truncated"):
        quantizer.quantize(broken, tmp_path / "out.gguf")


@pytest.mark.parametrize("name", [name for name, preset in FILE_TYPES.items() if preset.needs_imatrix])
def test_low_presets_are_refused_without_a_matrix(
    name: str, fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    with pytest.raises(UsageError, match=f"{name} needs an importance matrix"):
        quantizer.quantize(fitting_model, tmp_path / "out.gguf", GgufQuantConfig(type=name))


def test_low_types_are_refused_for_tensors_without_an_entry(
    fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    config = GgufQuantConfig(tensor_types={DOWN: "IQ2_XS"})
    with pytest.raises(UsageError, match=rf"{DOWN} would become IQ2_XS.*there is none"):
        quantizer.quantize(fitting_model, tmp_path / "out.gguf", config)
    matrix = seeded_imatrix(fitting_model, without=(DOWN,))
    with pytest.raises(UsageError, match=rf"{DOWN} would become IQ2_XS.*no entry for it"):
        quantizer.quantize(fitting_model, tmp_path / "out.gguf", config, imatrix=matrix)
    with pytest.raises(UsageError, match="would become Q2_K, which needs"):
        quantizer.quantize(fitting_model, tmp_path / "out.gguf", GgufQuantConfig(type="Q2_K_S"), imatrix=matrix)


def test_the_matrix_of_another_model_is_refused(fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer) -> None:
    out, matrix = tmp_path / "out.gguf", seeded_imatrix(fitting_model)
    foreign = replace(matrix, entries={"blk.7.attn_q.weight": matrix.entries[DOWN]})
    with pytest.raises(UsageError, match=r"another model.*no tensor blk\.7\.attn_q"):
        quantizer.quantize(fitting_model, out, imatrix=foreign)
    longer = replace(matrix, entries={**matrix.entries, DOWN: ImatrixEntry(np.ones((1, 768)), np.ones(1))})
    with pytest.raises(UsageError, match=rf"768 values for {DOWN}.*512 inputs"):
        quantizer.quantize(fitting_model, out, imatrix=longer)
    shallow = replace(matrix, entries={name: one for name, one in matrix.entries.items() if "blk.1." not in name})
    with pytest.raises(UsageError, match=r"it has 1 layers, .* has 2"):
        quantizer.quantize(fitting_model, out, imatrix=shallow)


@pytest.mark.parametrize(
    ("pattern", "type_name", "message"),
    [
        ("blk.1.ffn_dwn.weight", "Q8_0", r"no tensor is called.*\n.*nearest tensor is blk\.1\.ffn_down\.weight"),
        ("blk.*.attn_norm.weight", "Q8_0", "only tensors that are never quantized"),
    ],
)
def test_a_pattern_that_does_nothing_is_refused(
    pattern: str, type_name: str, message: str, fitting_model: Path, tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    with pytest.raises(UsageError, match=message):
        quantizer.quantize(fitting_model, tmp_path / "out.gguf", GgufQuantConfig(tensor_types={pattern: type_name}))


def test_a_type_whose_blocks_do_not_fit_is_refused(
    make_model: Callable[..., Path], tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    config = GgufQuantConfig(tensor_types={"blk.0.attn_q.weight": "Q6_K"})
    with pytest.raises(UsageError, match="192 columns, Q6_K needs a multiple of 256"):
        quantizer.quantize(make_model(width=192), tmp_path / "out.gguf", config)


def test_what_the_library_leaves_alone_cannot_be_asked_for(
    make_model: Callable[..., Path], tmp_path: Path, quantizer: GgufQuantizer
) -> None:
    config = GgufQuantConfig(tensor_types={"blk.0.ffn_gate_inp.weight": "Q8_0"})
    with pytest.raises(UnsupportedError, match=r"leaves blk\.0\.ffn_gate_inp\.weight in F32"):
        quantizer.quantize(make_model(num_experts=4), tmp_path / "out.gguf", config)


def test_an_assertion_of_the_library_is_an_error_of_ours(fitting_model: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.gguf")
    bad = QuantizeJob(
        source=str(fitting_model), out=out, file_type=7, tensor_types=[("token_embd", TENSOR_TYPES["IQ2_XXS"].number)]
    )
    worker = WorkerProcess()
    with pytest.raises(UnsupportedError, match=r"ended with SIGABRT.*GGML_ASSERT"):
        worker.run(bad, {}, lambda _: None)
    assert not worker.is_alive
    worker.close()


class _Interrupting(Progress):
    """Somebody presses Ctrl-C in the middle."""

    @contextmanager
    def bar(self, description: str, total: float | None = None) -> Iterator[Advance]:
        def advance(_: float) -> None:
            raise KeyboardInterrupt

        yield advance


def test_an_interrupt_leaves_nothing_behind(fitting_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    with GgufQuantizer() as quantizer:
        with pytest.raises(KeyboardInterrupt):
            quantizer.quantize(fitting_model, out, progress=_Interrupting())
        assert list(tmp_path.iterdir()) == []
        quantizer.quantize(fitting_model, out)  # and another can follow
    assert out.exists()


def test_the_worker_ends_with_the_process_that_uses_it() -> None:
    code = (
        "import os, signal; from compress.gguf.worker_process import WorkerProcess; worker = WorkerProcess();"
        "print(worker._process.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL
    deadline = time.monotonic() + 30
    while _is_running(int(done.stdout)):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def _is_running(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except (ProcessLookupError, FileNotFoundError):
        return False


def test_a_disk_that_takes_no_more_is_named(fitting_model: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.gguf"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(StorageError, match=r"cannot be written"):
            quantize_gguf(fitting_model, out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_sixteen_bit_sources_are_read(tmp_path: Path, quantizer: GgufQuantizer) -> None:
    source = write_llama(tmp_path / "f16.gguf", dtype=np.float16)
    done = quantizer.quantize(source, tmp_path / "out.gguf", GgufQuantConfig(type="Q8_0"))
    expected = gguf.quants.quantize(values_of(source, DOWN).astype(np.float32), gguf.GGMLQuantizationType.Q8_0)
    assert stored_bytes(done.path)[DOWN] == expected.tobytes()
    assert {one.source_type for one in done.tensors} == {"F16", "F32"}


def test_smollm2_keeps_its_words(smollm2_folder: Path, quantizer: GgufQuantizer, tmp_path: Path) -> None:
    source = to_gguf(smollm2_folder, tmp_path / "f16.gguf").path
    text = "It was the best of times, it was the worst of times, it was the age of wisdom, it was the age of"
    with LlamaModel(source, vocab_only=True) as model:
        tokens = model.tokenize(text, add_special=False)
    matrix = collect_imatrix_runtime(source, [tokens])
    done = quantizer.quantize(source, tmp_path / "out.gguf", imatrix=matrix)
    assert len(done.fallbacks) == 180  # 576 columns are no multiple of 256
    assert (done.without_imatrix, len(done.tensors)) == ((), 272)
    assert done.size_bytes == pytest.approx(105.5e6, rel=1e-3)
    tops = []
    for path in (source, done.path):
        with LlamaModel(path) as model, LlamaContext(model, num_tokens=len(tokens)) as context:
            tops.append(context.run(tokens).argmax(1))
    assert (tops[0] == tops[1]).mean() > 0.8
