"""Commands on language models say what a file is, and refuse what it is not, before an engine is loaded."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from edgesmith import api
from edgesmith.api.adapters import adapter_files, check_speaks
from edgesmith.cli.answers import show_answers
from edgesmith.cli.look import _set_options, inspect
from edgesmith.cli.options import columns_of
from edgesmith.data import check_columns, read_rows
from edgesmith.errors import ArtifactError, DataError, UnsupportedError, UsageError


def write_gguf(path: Path, *, kind: str = "model") -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_type(kind)
    writer.add_context_length(512)
    writer.add_block_count(3)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(["a", "b"])
    writer.add_tensor("token_embd.weight", np.zeros((4, 32), np.float32))
    blocks = gguf.quants.quantize(np.ones((8, 32), np.float32), gguf.GGMLQuantizationType.Q8_0)
    writer.add_tensor("output.weight", blocks, raw_dtype=gguf.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_a_gguf_file_is_shown_with_its_types_and_bits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    facts = api.inspect(path)["gguf"]
    assert (facts["architecture"], facts["context_length"], facts["num_layers"]) == ("llama", 512, 3)
    assert (facts["tokenizer"], facts["pre_tokenizer"], facts["has_chat_template"]) == ("gpt2", "smollm", False)
    assert {one["type"]: one["bits_per_weight"] for one in facts["tensor_types"]} == {"F32": 32, "Q8_0": 8.5}
    assert facts["bits_per_weight"] == pytest.approx((128 * 32 + 256 * 8.5) / 384)
    inspect(path)
    shown = capsys.readouterr().out
    assert "gpt2/smollm" in shown
    assert "Q8_0" in shown
    assert "None" not in shown


def test_a_truncated_gguf_file_is_refused(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "model.gguf")
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(ArtifactError, match="truncated"):
        api.inspect(path)


def test_an_adapter_is_no_model_and_a_model_is_no_adapter(tmp_path: Path) -> None:
    adapter = write_gguf(tmp_path / "adapter.gguf", kind="adapter")
    model = write_gguf(tmp_path / "model.gguf")
    with pytest.raises(UnsupportedError, match="LoRA adapter") as refused:
        check_speaks(adapter)
    assert "--adapter" in refused.value.mend
    check_speaks(model)
    assert adapter_files([f"{adapter}:0.5"]) == [(adapter, 0.5)]
    with pytest.raises(UnsupportedError, match="whole model"):
        adapter_files([model])
    with pytest.raises(UsageError, match="no such file"):
        adapter_files([tmp_path / "none.gguf"])


def test_an_artifact_folder_is_an_adapter_too_and_its_hash_is_checked(tmp_path: Path) -> None:
    from edgesmith.artifact import write_artifact

    folder = tmp_path / "lora"
    folder.mkdir()
    file = write_gguf(folder / "adapter.gguf", kind="adapter")
    write_artifact(folder, kind="gguf-adapter", step="export")
    assert adapter_files([folder]) == [(file, 1.0)]
    with pytest.raises(UnsupportedError, match="without its base"):
        check_speaks(folder)
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(ArtifactError, match="altered"):
        adapter_files([folder])


def test_options_that_were_left_out_are_not_shown() -> None:
    assert _set_options({"type": "Q4_K_M", "max_mb": None, "tensor_types": {}}) == {"type": "Q4_K_M"}
    assert _set_options({"quantize": {"method": "int4"}, "precision": "fp32"}) == {"quantize": {"method": "int4"}}


def test_a_column_that_is_not_there_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"question": "a", "reference": "b"}\n')
    check_columns(path, {"prompt": "question"})
    with pytest.raises(DataError, match="no column 'nix'; it has 'question', 'reference'"):
        columns_of(["prompt=nix"], path)
    assert columns_of(["prompt=nix"], tmp_path / "none.jsonl") == {"prompt": "nix"}


def test_bytes_that_are_no_text_are_refused(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.txt", b"one\nt\0w\0o", "a.txt:2: is no text"),
        ("b.jsonl", '{"text": "x"}\n'.encode("utf-16-le"), "is no text"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(DataError, match=said) as refused:
            list(read_rows(path))
        assert "UTF-16" in refused.value.mend


def llama(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model_type": "llama", "architectures": ["LlamaForCausalLM"]}))
    return folder


def test_a_starter_puts_prompts_where_they_belong_and_says_what_is_missing_last(tmp_path: Path) -> None:
    import yaml

    rows = tmp_path / "p.jsonl"
    rows.write_text('{"prompt": "a", "reference": "b"}\n')
    out = tmp_path / "recipe.yaml"
    guesses = api.init(llama(tmp_path / "base"), data=rows, out=out)["guesses"]
    data = yaml.safe_load(out.read_text())["data"]
    assert data == {"eval": "held_out.txt", "calibration": "train.txt", "prompts": "p.jsonl"}
    assert guesses[-1].startswith("missing: held_out.txt and train.txt")


def test_a_checkpoint_far_away_is_named_by_its_whole_path(tmp_path: Path) -> None:
    import yaml

    base = llama(tmp_path / "cache" / "base")
    for folder, expected in (("near", "../cache/base"), ("a/b/c", str(base))):
        out = tmp_path / folder / "recipe.yaml"
        out.parent.mkdir(parents=True)
        api.init(base, out=out)
        assert yaml.safe_load(out.read_text())["model"]["base"] == expected


def test_answers_are_a_table_with_two_of_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sacrebleu")
    from bench.language.answers import Prompt, measure_answers
    from tests.bench.language.engines import KnownEngine

    prompts = [Prompt(prompt=text, references=("whale",), line=line) for line, text in enumerate(("a", "b", "c"), 1)]
    measure_answers(KnownEngine(), prompts).save(tmp_path)
    show_answers(tmp_path)
    shown = capsys.readouterr().out
    assert "3 prompts" in shown
    assert "exact match" in shown
    assert "0.0% to 70.8%" in shown
    assert shown.count("expected  'whale'") == 2
