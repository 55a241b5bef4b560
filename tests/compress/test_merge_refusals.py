"""What cannot be merged exactly, or safely, is refused with a message that names it and what to do."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file, save_file

from compress.adapter import AdapterSpec, record_base
from compress.merge import merge_adapter
from compress.verify_merge import verify_merge
from edgesmith.errors import (
    CheckpointError,
    EdgesmithError,
    MergeError,
    StorageError,
    UnsupportedError,
    UsageError,
    VerificationError,
)
from tests.compress.merge_models import (
    VOCAB,
    bert_config,
    llama_config,
    save_adapter,
    save_model,
    token_ids,
)

LLAMA = "LlamaForCausalLM"
BERT = "BertForSequenceClassification"
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("originals")
    base = save_model(root / "base", LLAMA, llama_config())
    return base, save_adapter(root / "adapter", base, LLAMA, peft.LoraConfig(**LORA))


@pytest.fixture
def base(originals: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals[0], tmp_path / "base"))


@pytest.fixture
def adapter(originals: tuple[Path, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals[1], tmp_path / "adapter"))


def refused(
    kind: type[EdgesmithError], base: Path, adapters: list[AdapterSpec] | Path, pattern: str, **options: Any
) -> EdgesmithError:
    """Merge, expect an error with a mend, and nothing left behind."""
    specs = [AdapterSpec(path=adapters)] if isinstance(adapters, Path) else adapters
    out = base.parent / "out"
    with pytest.raises(kind, match=pattern) as caught:
        merge_adapter(base, specs, out, **options)
    assert caught.value.mend
    assert not out.exists()
    assert list(base.parent.glob(".out.*")) == []
    return caught.value


def edit_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def edit_tensors(path: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_another_width_names_both_shapes(adapter: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", LLAMA, llama_config().__class__(
        vocab_size=VOCAB, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        intermediate_size=64,
    ))  # fmt: skip
    refused(MergeError, other, adapter, r"lora_A.*\(4, 32\).*needs \(4, 64\)")


def test_another_number_of_layers_names_the_tensor(adapter: Path, originals: tuple[Path, Path], tmp_path: Path) -> None:
    for layers, pattern in ((1, r"'base_model.model.model.layers.1.*fits nothing"), (3, r"layers.2.*is missing")):
        config = llama_config()
        config.num_hidden_layers = layers
        other = save_model(tmp_path / f"other{layers}" / "base", LLAMA, config)
        refused(MergeError, other, adapter, pattern)


def test_another_architecture_is_refused(adapter: Path, tmp_path: Path) -> None:
    other = save_model(tmp_path / "other", "BertLMHeadModel", bert_config(is_decoder=True))
    refused(MergeError, other, adapter, "does not fit this base")


def test_a_missing_and_an_extra_tensor_are_named(base: Path, adapter: Path) -> None:
    weights = adapter / "adapter_model.safetensors"
    name = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    edit_tensors(weights, lambda tensors: tensors.update(stray=torch.ones(2)))
    refused(MergeError, base, adapter, "'stray' fits nothing")
    edit_tensors(weights, lambda tensors: (tensors.pop("stray"), tensors.pop(name)))  # type: ignore[func-returns-value]
    refused(MergeError, base, adapter, f"'{name}' is missing")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_value_that_is_no_number_is_found_in_the_adapter(value: float, base: Path, adapter: Path) -> None:
    def change(tensors: dict[str, torch.Tensor]) -> None:
        next(iter(tensors.values()))[0, 0] = value

    edit_tensors(adapter / "adapter_model.safetensors", change)
    refused(CheckpointError, base, adapter, "lora_A.weight' holds 1 NaN or infinite values out of 128")


@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.layers.1.self_attn.q_proj.weight"])
def test_a_nan_is_found_in_the_base_touched_or_not(name: str, base: Path, adapter: Path) -> None:
    edit_tensors(base / "model.safetensors", lambda tensors: tensors[name].view(-1)[5:7].fill_(float("nan")))  # type: ignore[arg-type,return-value]
    refused(CheckpointError, base, adapter, f"'{name}' holds 2 NaN")


def test_a_merged_value_beyond_the_stored_type_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", LLAMA, llama_config(), dtype=torch.float16)
    adapter = save_adapter(tmp_path / "adapter", base, LLAMA, peft.LoraConfig(**LORA))
    edit_tensors(
        adapter / "adapter_model.safetensors",
        lambda tensors: [value.mul_(1e4) for value in tensors.values()],  # type: ignore[arg-type,return-value]
    )
    refused(MergeError, base, adapter, "F16 cannot represent")


@pytest.mark.parametrize(
    ("config", "pattern"),
    [
        (peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "prompt tuning cannot be merged"),
        (peft.PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "prefix tuning cannot be merged"),
        (peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=4), "p-tuning cannot be merged"),
        (peft.LilyConfig(target_modules=["q_proj"], task_type="CAUSAL_LM"), "'LILY' cannot be merged exactly"),
    ],
    ids=["prompt", "prefix", "p-tuning", "lily"],
)
def test_kinds_without_merged_weights_are_refused(config: Any, pattern: str, base: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", base, LLAMA, config)
    refused(MergeError, base, adapter, pattern)


@pytest.mark.parametrize("start", ["pissa_niter_4", "corda", "lora_ga", "loftq"])
def test_a_start_that_lost_its_base_is_refused(start: str, base: Path, adapter: Path) -> None:
    edit_json(adapter / "adapter_config.json", init_lora_weights=start)
    error = refused(MergeError, base, adapter, "changed the base by")
    assert "path_initial_model_for_weight_conversion" in error.mend


def test_settings_that_change_the_model_or_import_code_are_refused(base: Path, adapter: Path) -> None:
    path = adapter / "adapter_config.json"
    text = path.read_text()
    edit_json(path, layer_replication=[[0, 2], [1, 2]])
    refused(MergeError, base, adapter, "layer_replication")
    path.write_text(text)
    edit_json(path, megatron_config={"a": 1}, megatron_core="antigravity")
    refused(CheckpointError, base, adapter, "modules of its own")
    path.write_text(text)
    edit_json(path, peft_type="NOT_A_KIND")
    refused(MergeError, base, adapter, "'NOT_A_KIND'")
    path.write_text(text)
    edit_json(path, peft_type=["LORA"])
    refused(MergeError, base, adapter, "cannot be merged exactly")
    path.write_text(text)
    edit_json(path, r=10**12)
    refused(CheckpointError, base, adapter, "r is 1000000000000")
    path.write_text(text)
    edit_json(path, target_modules=["no_such_module"])
    refused(MergeError, base, adapter, "no_such_module.* not found in the base")
    path.write_text("{")
    refused(CheckpointError, base, adapter, "not JSON")


def test_pickles_and_code_are_refused(base: Path, adapter: Path) -> None:
    weights = (adapter / "adapter_model.safetensors").rename(adapter / "adapter_model.bin")
    refused(CheckpointError, base, adapter, r"adapter_model.bin: adapter weights as a pickle")
    weights.rename(adapter / "adapter_model.safetensors")
    edit_json(base / "config.json", auto_map={"AutoModelForCausalLM": "model.Evil"})
    refused(CheckpointError, base, adapter, "code of its own")
    edit_json(base / "config.json", auto_map=None)
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    refused(CheckpointError, base, adapter, r"the weights are a pickle \(pytorch_model.bin\)")


@pytest.mark.parametrize(
    ("settings", "name"),
    [
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, "bitsandbytes 4-bit"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes 8-bit"),
        ({"quant_method": "gptq", "bits": 4}, "gptq 4-bit"),
        ({"quant_method": "awq", "bits": 4}, "awq 4-bit"),
        ({"quant_method": "fp8"}, "fp8"),
    ],
)
def test_a_quantized_base_is_refused_unless_it_may_be_dequantized(
    settings: dict[str, Any], name: str, base: Path, adapter: Path
) -> None:
    edit_json(base / "config.json", quantization_config=settings)
    error = refused(MergeError, base, adapter, rf"quantized \({name}\)")
    assert "--dequantize" in error.mend


def test_a_base_that_cannot_be_dequantized_here_says_what_is_needed(base: Path, adapter: Path) -> None:
    edit_json(base / "config.json", quantization_config={"quant_method": "gptq", "bits": 4})
    refused(UnsupportedError, base, adapter, "gptq 4-bit weights cannot be dequantized", dequantize=True)


@pytest.mark.parametrize(
    "config",
    [
        peft.IA3Config(target_modules=["q_proj"], feedforward_modules=[], task_type="CAUSAL_LM"),
        peft.OFTConfig(r=4, oft_block_size=0, target_modules=["q_proj"], task_type="CAUSAL_LM"),
        peft.LoraConfig(**LORA, use_dora=True),
    ],
    ids=["ia3", "oft", "dora"],
)
def test_what_is_no_delta_is_neither_scaled_nor_summed(config: Any, base: Path, adapter: Path, tmp_path: Path) -> None:
    other = save_adapter(tmp_path / "other", base, LLAMA, config)
    refused(MergeError, base, [AdapterSpec(path=other, weight=0.5)], "no delta to be scaled")
    refused(MergeError, base, [AdapterSpec(path=other), AdapterSpec(path=adapter)], "one of 2 adapters")


def test_modules_trained_whole_are_neither_scaled_nor_summed(base: Path, adapter: Path, tmp_path: Path) -> None:
    config = peft.LoraConfig(**LORA, modules_to_save=["lm_head"])
    one = save_adapter(tmp_path / "one", base, LLAMA, config)
    two = save_adapter(tmp_path / "two", base, LLAMA, config, seed=2)
    head = save_adapter(
        tmp_path / "head", base, LLAMA, peft.LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    )
    refused(MergeError, base, [AdapterSpec(path=one, weight=0.5)], "'lm_head.weight' was trained whole")
    refused(MergeError, base, [AdapterSpec(path=one), AdapterSpec(path=two)], "both change 'lm_head.weight'")
    refused(MergeError, base, [AdapterSpec(path=one), AdapterSpec(path=head)], "both change 'lm_head.weight'")


def test_a_recorded_hash_of_the_base_decides(base: Path, adapter: Path, tmp_path: Path) -> None:
    record_base(adapter, base)
    merge_adapter(base, [AdapterSpec(path=adapter)], tmp_path / "good")
    edit_tensors(base / "model.safetensors", lambda tensors: tensors["lm_head.weight"].mul_(1.001))  # type: ignore[arg-type,return-value]
    error = refused(MergeError, base, adapter, "was trained on a base with weights sha256:")
    assert f"remove {adapter / 'base.json'}" in str(error.mend)
    result = merge_adapter(base, [AdapterSpec(path=adapter)], tmp_path / "asked", allow_other_base=True)
    assert any("as asked" in note for note in result.notes)


@pytest.mark.parametrize(
    ("recorded", "revision", "pattern"),
    [("org/other-7b", None, "trained on org/other-7b, this base is org/model"), ("org/model", "b" * 40, "revision b")],
)
def test_a_cached_base_of_another_name_or_revision_is_refused(
    recorded: str, revision: str | None, pattern: str, base: Path, adapter: Path, tmp_path: Path
) -> None:
    cached = tmp_path / "models--org--model" / "snapshots" / ("a" * 40)
    shutil.copytree(base, cached)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path=recorded, revision=revision)
    refused(MergeError, cached, adapter, pattern)
    edit_json(adapter / "adapter_config.json", base_model_name_or_path="org/model", revision="a" * 40)
    assert merge_adapter(cached, [AdapterSpec(path=adapter)], tmp_path / "out").notes == ()


def test_another_local_path_is_only_a_note(base: Path, adapter: Path, tmp_path: Path) -> None:
    result = merge_adapter(base, [AdapterSpec(path=adapter)], tmp_path / "out")
    assert [note for note in result.notes if "records the base" in note]


def test_a_head_that_nobody_has_is_refused(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "BertModel", bert_config())
    adapter = save_adapter(tmp_path / "adapter", base, BERT, peft.LoraConfig(r=2, target_modules=["query"]))
    refused(CheckpointError, base, adapter, "neither the base nor an adapter has it", model_class=BERT)


def test_vocabulary_and_tokenizer_must_agree(base: Path, adapter: Path) -> None:
    vocabulary = {"type": "WordLevel", "vocab": {"a": 0}}
    added = [{"id": VOCAB, "content": "<new>"}]
    (adapter / "tokenizer.json").write_text(json.dumps({"model": vocabulary, "added_tokens": added}))
    refused(MergeError, base, adapter, f"highest token id is {VOCAB}, the embeddings have {VOCAB} rows")


def test_config_and_weights_of_two_models_are_refused(base: Path, adapter: Path) -> None:
    edit_json(base / "config.json", intermediate_size=48)
    refused(CheckpointError, base, adapter, r"has shape \(32, 64\), its config.json says \(32, 48\)")


def test_impossible_configurations_are_refused(base: Path, adapter: Path) -> None:
    text = (base / "config.json").read_text()
    edit_json(base / "config.json", model_type="no-such-model")
    refused(CheckpointError, base, adapter, "does not accept it")
    (base / "config.json").write_text(text)
    edit_json(base / "config.json", num_hidden_layers=10**9)
    refused(CheckpointError, base, adapter, "num_hidden_layers is 1000000000, but there are only 21 tensors")
    (base / "config.json").write_text(text)
    edit_json(base / "config.json", attn_implementation="someone/evil-kernel")
    refused(CheckpointError, base, adapter, "asks for code from elsewhere")
    (base / "config.json").write_text(text)
    edit_json(base / "config.json", num_attention_heads=0)
    refused(CheckpointError, base, adapter, "config.json")
    (base / "config.json").unlink()
    refused(CheckpointError, base, adapter, "config.json: missing")


def test_requests_that_make_no_sense_are_refused(base: Path, adapter: Path, tmp_path: Path) -> None:
    refused(UsageError, base, [], "no adapter")
    refused(UsageError, base, [AdapterSpec(path=adapter, weight=0)], "adapter weight 0")
    refused(UsageError, base, [AdapterSpec(path=adapter, weight=float("nan"))], "adapter weight nan")
    refused(UsageError, base, adapter, "dtype 'int8'", dtype="int8")
    refused(UsageError, base, adapter, "3 labels given", labels=["a", "b", "c"])
    refused(CheckpointError, base, tmp_path / "nowhere", "no such adapter folder")
    with pytest.raises(UsageError, match="no such class"):
        merge_adapter(base, [AdapterSpec(path=adapter)], tmp_path / "out", model_class="AutoModelForNothing")
    with pytest.raises(UsageError, match="exists and is not empty"):
        merge_adapter(base, [AdapterSpec(path=adapter)], base)
    assert (base / "model.safetensors").exists()


def test_a_truncated_base_is_refused_with_both_sizes(base: Path, adapter: Path) -> None:
    path = base / "model.safetensors"
    size = path.stat().st_size
    path.write_bytes(path.read_bytes()[:-100])
    refused(CheckpointError, base, adapter, f"truncated: expected {size} bytes, the file has {size - 100}")


def test_verification_finds_a_wrong_weight(base: Path, adapter: Path, tmp_path: Path) -> None:
    spec = [AdapterSpec(path=adapter)]
    merge_adapter(base, spec, tmp_path / "out")
    path = tmp_path / "out/model.safetensors"
    edit_tensors(path, lambda tensors: tensors["model.layers.0.self_attn.q_proj.weight"].add_(0.01))  # type: ignore[arg-type,return-value]
    with pytest.raises(VerificationError, match="differs from base \\+ adapter by") as caught:
        verify_merge(base, spec, tmp_path / "out", [token_ids()])
    assert caught.value.exit_code == 1
    with pytest.raises(UsageError, match="no rows"):
        verify_merge(base, spec, tmp_path / "out", [])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_saved_tensor_one_unit_off_is_found(dtype: str, base: Path, adapter: Path, tmp_path: Path) -> None:
    spec = [AdapterSpec(path=adapter)]
    merge_adapter(base, spec, tmp_path / "out", dtype=dtype)
    verify_merge(base, spec, tmp_path / "out", [token_ids()])
    edit_tensors(tmp_path / "out/model.safetensors", lambda tensors: one_unit_up(tensors["model.norm.weight"]))
    with pytest.raises(VerificationError, match=r"'model\.norm\.weight': 1 values are not the merged ones rounded to"):
        verify_merge(base, spec, tmp_path / "out", [token_ids()])


def one_unit_up(tensor: torch.Tensor) -> None:
    tensor.view(torch.int16)[5] += 1


def test_an_output_that_is_no_number_is_found_wherever_it_stands(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "BertModel", bert_config())
    config = peft.LoraConfig(r=2, target_modules=["query"], task_type="FEATURE_EXTRACTION")
    spec = [AdapterSpec(path=save_adapter(tmp_path / "adapter", base, "BertModel", config))]
    merge_adapter(base, spec, tmp_path / "out")
    verify_merge(base, spec, tmp_path / "out", [token_ids()])
    edit_tensors(tmp_path / "out/model.safetensors", lambda tensors: poison(tensors["pooler.dense.weight"]))
    with pytest.raises(VerificationError, match="merged: output 'pooler_output' holds 4 NaN or infinite values out of"):
        verify_merge(base, spec, tmp_path / "out", [token_ids()])


def poison(tensor: torch.Tensor) -> None:
    tensor[0, 0] = torch.nan


def test_a_full_disk_is_a_storage_error(base: Path, adapter: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    from compress.tensor_file import TensorFileWriter

    with pytest.raises(StorageError):
        TensorFileWriter(Path("/dev/full"), {"a": ("F32", (1000,))})
