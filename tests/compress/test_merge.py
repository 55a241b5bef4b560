"""What a merge writes: types, names, shards, tied weights, vocabularies, heads, several adapters, other files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from compress.checkpoint import open_checkpoint, weights_digest
from compress.merge import AdapterSpec, merge_adapter
from compress.verify_merge import verify_merge
from tests.compress.merge_models import (
    VOCAB,
    bert_config,
    llama_config,
    load,
    load_unmerged,
    logits,
    quiet,
    save_adapter,
    save_model,
    token_ids,
)

BERT = "BertForSequenceClassification"
LLAMA = "LlamaForCausalLM"
LORA = {"r": 4, "target_modules": ["q_proj", "v_proj"], "task_type": "CAUSAL_LM"}


def merge(base: Path, adapter: Path, out: Path, **options: Any) -> Any:
    return merge_adapter(base, [AdapterSpec(path=adapter)], out, **options)


def verify(base: Path, adapter: Path, out: Path) -> Any:
    return verify_merge(base, [AdapterSpec(path=adapter)], out, [token_ids()])


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("llama"), LLAMA, llama_config())


@pytest.fixture(scope="module")
def tied_llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("tied"), LLAMA, llama_config(tie_word_embeddings=True))


def test_untouched_tensors_and_names_and_layout_are_those_of_the_base(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))
    result = merge(llama, adapter, tmp_path / "out")
    before, after = load_file(llama / "model.safetensors"), load_file(tmp_path / "out/model.safetensors")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert list(before) == list(after)
    assert changed == {name for name in before if "q_proj" in name or "v_proj" in name}
    assert (result.num_merged, result.num_copied) == (len(changed), len(before) - len(changed))
    assert open_checkpoint(tmp_path / "out").config == open_checkpoint(llama).config


def test_merging_twice_gives_the_same_bytes(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))
    for name in ("one", "two"):
        merge(llama, adapter, tmp_path / name)
    files = sorted(path.name for path in (tmp_path / "one").iterdir())
    assert files == sorted(path.name for path in (tmp_path / "two").iterdir())
    assert all((tmp_path / "one" / f).read_bytes() == (tmp_path / "two" / f).read_bytes() for f in files)


@pytest.mark.parametrize(("dtype", "unit"), [(torch.bfloat16, 2**-9), (torch.float16, 2**-12)])
def test_a_narrow_base_is_merged_in_float32_and_rounded_once(dtype: torch.dtype, unit: float, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", LLAMA, llama_config(), dtype=dtype)
    adapter = save_adapter(tmp_path / "adapter", base, LLAMA, peft.LoraConfig(**LORA))
    with quiet():
        exact = load_unmerged(base, adapter, LLAMA).merge_and_unload().state_dict()
    merge(base, adapter, tmp_path / "out")
    merged = load_file(tmp_path / "out/model.safetensors")
    assert {value.dtype for value in merged.values()} == {dtype}
    assert all(torch.equal(merged[name], exact[name].to(dtype)) for name in merged)

    verification = verify(base, adapter, tmp_path / "out")
    assert verification.max_abs_diff <= 1e-4 < verification.max_abs_diff_saved
    assert verification.max_abs_diff_saved <= verification.saved_tolerance
    assert verification.saved_dtype == {torch.bfloat16: "BF16", torch.float16: "F16"}[dtype]
    assert verification.max_abs_diff_saved > unit * 1e-3


def test_shards_are_read_and_written(llama: Path, tmp_path: Path) -> None:
    sharded = save_model(tmp_path / "sharded", LLAMA, llama_config(), max_shard_size="20KB")
    assert len(list(sharded.glob("*.safetensors"))) > 2
    assert weights_digest(sharded) == weights_digest(llama)
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))
    whole = merge(llama, adapter, tmp_path / "whole")
    split = merge(sharded, adapter, tmp_path / "split", max_shard_bytes=20_000)
    assert len(list((tmp_path / "split").glob("*.safetensors"))) > 2
    assert weights_digest(whole.path) == weights_digest(split.path)
    assert torch.equal(logits(load(whole.path, LLAMA)), logits(load(split.path, LLAMA)))


def test_all_weights_can_be_written_in_another_type(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))
    result = merge(llama, adapter, tmp_path / "out", dtype="bfloat16")
    assert {value.dtype for value in load_file(tmp_path / "out/model.safetensors").values()} == {torch.bfloat16}
    assert open_checkpoint(tmp_path / "out").config["dtype"] == "bfloat16"
    assert result.dtype == "BF16"


@pytest.mark.parametrize("targets", [["lm_head"], ["embed_tokens"], ["embed_tokens", "lm_head"]])
def test_tied_embeddings_are_untied_when_an_adapter_makes_them_differ(
    targets: list[str], tied_llama: Path, tmp_path: Path
) -> None:
    config = peft.LoraConfig(r=4, target_modules=targets, task_type="CAUSAL_LM")
    adapter = save_adapter(tmp_path / "adapter", tied_llama, LLAMA, config)
    result = merge(tied_llama, adapter, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").config["tie_word_embeddings"] is False
    assert any("tied" in note for note in result.notes)
    assert verify(tied_llama, adapter, tmp_path / "out").max_abs_diff <= 1e-4


@pytest.mark.parametrize(
    "config",
    [
        peft.LoraConfig(**LORA),
        peft.LoraConfig(**LORA, trainable_token_indices=[5, 9]),
        peft.TrainableTokensConfig(token_indices=[5, 9], task_type="CAUSAL_LM"),
        peft.LoraConfig(
            r=4, target_modules=["embed_tokens", "q_proj"], ensure_weight_tying=True, task_type="CAUSAL_LM"
        ),
        peft.LoraConfig(**LORA, modules_to_save=["embed_tokens"], ensure_weight_tying=True),
    ],
    ids=["untouched", "lora+tokens", "tokens", "tied-lora", "tied-whole"],
)
def test_tied_embeddings_stay_tied_when_they_stay_equal(config: Any, tied_llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", tied_llama, LLAMA, config)
    result = merge(tied_llama, adapter, tmp_path / "out")
    assert open_checkpoint(tmp_path / "out").config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in open_checkpoint(tmp_path / "out").entries
    assert verify(tied_llama, adapter, result.path).max_abs_diff <= 1e-4


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("how", ["resized", "targeted", "whole", "tokens"])
def test_added_tokens_bring_their_embeddings(how: str, tied: bool, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", LLAMA, llama_config(tie_word_embeddings=tied))
    options: dict[str, Any] = {
        "resized": LORA,
        "targeted": {**LORA, "target_modules": ["q_proj", "embed_tokens", "lm_head"]},
        "whole": {**LORA, "modules_to_save": ["embed_tokens", "lm_head"]},
        "tokens": {**LORA, "trainable_token_indices": [VOCAB, VOCAB + 1]},
    }[how]
    adapter = save_adapter(
        tmp_path / "adapter",
        base,
        LLAMA,
        peft.LoraConfig(**options),
        prepare=lambda model: model.resize_token_embeddings(VOCAB + 4),
    )
    result = merge(base, adapter, tmp_path / "out")
    assert open_checkpoint(result.path).config["vocab_size"] == VOCAB + 4
    assert open_checkpoint(result.path).entries["model.embed_tokens.weight"].shape == (VOCAB + 4, 32)
    batch = token_ids(vocab=VOCAB)
    batch["input_ids"][:, 3] = VOCAB + 1
    verification = verify_merge(base, [AdapterSpec(path=adapter)], result.path, [batch])
    assert verification.max_abs_diff <= 1e-4


def test_a_bare_encoder_gets_the_head_that_the_adapter_was_trained_with(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", "BertModel", bert_config())
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], task_type="SEQ_CLS")
    adapter = save_adapter(tmp_path / "adapter", base, BERT, config, load={"num_labels": 5})
    result = merge(base, adapter, tmp_path / "out", labels=["a", "b", "c", "d", "e"])
    assert result.model_class == BERT
    merged = open_checkpoint(result.path)
    assert merged.config["architectures"] == [BERT]
    assert merged.config["label2id"] == {"a": 0, "b": 1, "c": 2, "d": 3, "e": 4}
    assert "bert.embeddings.word_embeddings.weight" in merged.entries
    assert merged.entries["classifier.weight"].shape == (5, 32)
    assert verify(base, adapter, result.path).max_abs_diff <= 1e-4


def test_labels_come_from_the_adapter_then_from_the_base(tmp_path: Path) -> None:
    named = {"id2label": {0: "no", 1: "yes", 2: "maybe"}, "label2id": {"no": 0, "yes": 1, "maybe": 2}}
    base = save_model(tmp_path / "base", BERT, bert_config(num_labels=3, **named))
    config = peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS")
    adapter = save_adapter(tmp_path / "adapter", base, BERT, config)
    merge(base, adapter, tmp_path / "one")
    assert open_checkpoint(tmp_path / "one").config["id2label"] == {"0": "no", "1": "yes", "2": "maybe"}
    (adapter / "config.json").write_text(json.dumps({"id2label": {"0": "x", "1": "y", "2": "z"}}))
    merge(base, adapter, tmp_path / "two")
    assert open_checkpoint(tmp_path / "two").config["id2label"] == {"0": "x", "1": "y", "2": "z"}
    assert open_checkpoint(tmp_path / "two").config["label2id"] == {"x": 0, "y": 1, "z": 2}


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_taken_over(bias: str, tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", BERT, bert_config(num_labels=3))
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], bias=bias, task_type="SEQ_CLS")
    adapter = save_adapter(tmp_path / "adapter", base, BERT, config)
    result = merge(base, adapter, tmp_path / "out")
    assert verify(base, adapter, result.path).max_abs_diff <= 1e-4
    before, after = load_file(base / "model.safetensors"), load_file(result.path / "model.safetensors")
    name = "bert.encoder.layer.0.attention.self.query.bias"
    assert not torch.equal(before[name], after[name])


def test_added_biases_of_lora_are_merged(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", BERT, bert_config(num_labels=3))
    config = peft.LoraConfig(r=4, target_modules=["query", "value"], lora_bias=True, task_type="SEQ_CLS")
    adapter = save_adapter(tmp_path / "adapter", base, BERT, config)
    result = merge(base, adapter, tmp_path / "out")
    assert verify(base, adapter, result.path).max_abs_diff <= 1e-4


@pytest.mark.parametrize("weights", [(1.0, 1.0), (0.3, -1.5)])
@pytest.mark.parametrize(
    "configs",
    [
        (peft.LoraConfig(**LORA), peft.LoraConfig(**{**LORA, "r": 2, "target_modules": ["v_proj", "down_proj"]})),
        (peft.LoraConfig(**LORA, use_rslora=True), peft.LoHaConfig(r=4, target_modules=["v_proj", "k_proj"])),
        (peft.LoKrConfig(r=4, target_modules=["q_proj"]), peft.LoKrConfig(r=2, target_modules=["q_proj"])),
    ],
    ids=["lora+lora", "lora+loha", "lokr+lokr"],
)
def test_several_adapters_are_summed_with_their_weights(
    configs: tuple[Any, Any], weights: tuple[float, float], llama: Path, tmp_path: Path
) -> None:
    specs = [
        AdapterSpec(path=save_adapter(tmp_path / f"adapter{index}", llama, LLAMA, config, seed=index), weight=weight)
        for index, (config, weight) in enumerate(zip(configs, weights, strict=True))
    ]
    result = merge_adapter(llama, specs, tmp_path / "out")
    assert verify_merge(llama, specs, result.path, [token_ids()]).max_abs_diff <= 1e-4


def test_a_weight_scales_the_delta(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))
    merge(llama, adapter, tmp_path / "one")
    merge_adapter(llama, [AdapterSpec(path=adapter, weight=0.25)], tmp_path / "quarter")
    base, one, quarter = (
        load_file(folder / "model.safetensors") for folder in (llama, tmp_path / "one", tmp_path / "quarter")
    )
    for name in base:
        torch.testing.assert_close(quarter[name] - base[name], 0.25 * (one[name] - base[name]), atol=1e-7, rtol=0)


def test_adapters_of_which_one_brings_a_head_are_summed(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", BERT, bert_config(num_labels=3))
    head = peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS")
    more = peft.LoraConfig(r=2, target_modules=["query", "key"])
    specs = [
        AdapterSpec(path=save_adapter(tmp_path / "head", base, BERT, head)),
        AdapterSpec(path=save_adapter(tmp_path / "more", base, BERT, more, seed=5), weight=0.5),
    ]
    merged = load_file(merge_adapter(base, specs, tmp_path / "out").path / "model.safetensors")
    trained = load_file(tmp_path / "head/adapter_model.safetensors")
    assert torch.equal(merged["classifier.weight"], trained["base_model.model.classifier.weight"])


def test_stacked_experts_are_merged_and_written_back_as_single_ones(tmp_path: Path) -> None:
    config = transformers.MixtralConfig(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=16, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=4, max_position_embeddings=64,
    )  # fmt: skip
    base = save_model(tmp_path / "base", "MixtralForCausalLM", config)
    lora = peft.LoraConfig(
        r=2,
        target_modules=["q_proj"],
        target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"],
        task_type="CAUSAL_LM",
    )
    adapter = save_adapter(tmp_path / "adapter", base, "MixtralForCausalLM", lora)
    result = merge(base, adapter, tmp_path / "out")
    assert set(open_checkpoint(base).entries) == set(open_checkpoint(result.path).entries)
    assert verify(base, adapter, result.path).max_abs_diff <= 1e-4


def test_an_encoder_decoder_is_merged(tmp_path: Path) -> None:
    config = transformers.T5Config(
        vocab_size=VOCAB, d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, decoder_start_token_id=0
    )
    base = save_model(tmp_path / "base", "T5ForConditionalGeneration", config)
    lora = peft.LoraConfig(r=4, target_modules=["q", "v"], task_type="SEQ_2_SEQ_LM")
    adapter = save_adapter(tmp_path / "adapter", base, "T5ForConditionalGeneration", lora)
    result = merge(base, adapter, tmp_path / "out")
    assert verify(base, adapter, result.path).max_abs_diff <= 1e-4


def test_other_files_come_along_and_the_adapters_tokenizer_wins_as_a_whole(llama: Path, tmp_path: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    for path in llama.iterdir():
        (base / path.name).write_bytes(path.read_bytes())
    vocabulary = {"type": "WordLevel", "vocab": {str(i): i for i in range(VOCAB)}}
    (base / "tokenizer.json").write_text(json.dumps({"model": vocabulary, "added_tokens": []}))
    (base / "vocab.txt").write_text("of the base")
    (base / "chat_template.jinja").write_text("base: {{ messages }}")
    (base / "generation_config.json").write_text('{"eos_token_id": 2}')
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling/config.json").write_text("{}")
    (base / "model.py").write_text("raise SystemExit")
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))
    merge(base, adapter, tmp_path / "one")
    for name in (
        "tokenizer.json",
        "vocab.txt",
        "chat_template.jinja",
        "generation_config.json",
        "1_Pooling/config.json",
    ):
        assert (tmp_path / "one" / name).read_bytes() == (base / name).read_bytes()
    assert not (tmp_path / "one/model.py").exists()

    (adapter / "tokenizer.json").write_text(json.dumps({"model": vocabulary, "added_tokens": [], "version": "2"}))
    (adapter / "chat_template.jinja").write_text("adapter: {{ messages }}")
    result = merge(base, adapter, tmp_path / "two")
    for name in ("tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "two" / name).read_bytes() == (adapter / name).read_bytes()
    assert not (tmp_path / "two/vocab.txt").exists()
    assert (tmp_path / "two/generation_config.json").exists()
    assert f"tokenizer: from {adapter}" in result.notes


def test_a_quantized_base_is_dequantized_when_asked(llama: Path, tmp_path: Path) -> None:
    base, size = tmp_path / "fp8", 16
    base.mkdir()
    tensors: dict[str, torch.Tensor] = {}
    for name, value in load_file(llama / "model.safetensors").items():
        tensors[name] = value
        if "proj" in name:  # weights of block-wise float8: one scale for each square of 16 × 16
            rows, columns = (side // size for side in value.shape)
            blocks = value.reshape(rows, size, columns, size)
            scale = blocks.abs().amax((1, 3)) / 448
            codes = (blocks / scale[:, None, :, None]).to(torch.float8_e4m3fn)
            tensors |= {name: codes.reshape(value.shape), f"{name}_scale_inv": scale}
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((llama / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8", "weight_block_size": [size, size]}
    (base / "config.json").write_text(json.dumps(config))
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))

    result = merge(base, adapter, tmp_path / "out", dequantize=True)
    assert "base: fp8 weights were dequantized first; their rounding errors stay" in result.notes
    assert sorted(path.name for path in result.path.iterdir()) == ["config.json", "model.safetensors"]
    assert "quantization_config" not in open_checkpoint(result.path).config
    exact = load_file(merge(llama, adapter, tmp_path / "exact").path / "model.safetensors")
    merged = load_file(result.path / "model.safetensors")
    assert exact.keys() == merged.keys()
    assert max(float((exact[name] - merged[name]).abs().max()) for name in exact) < 0.02
    assert verify(base, adapter, result.path).max_abs_diff <= 1e-4


def test_memory_and_sizes_are_reported(llama: Path, tmp_path: Path) -> None:
    adapter = save_adapter(tmp_path / "adapter", llama, LLAMA, peft.LoraConfig(**LORA))
    result = merge(llama, adapter, tmp_path / "out")
    assert result.weights_bytes == sum(entry.size_bytes for entry in open_checkpoint(llama).entries.values())
    assert result.largest_tensor_bytes == VOCAB * 32 * 4
    assert result.peak_memory_bytes > result.peak_memory_added_bytes >= 0


def test_large_outputs_are_judged_in_float64(tmp_path: Path, llama: Path) -> None:
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_bytes((llama / "config.json").read_bytes())
    tensors = load_file(llama / "model.safetensors")
    tensors["lm_head.weight"] *= 300
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    adapter = save_adapter(tmp_path / "adapter", base, LLAMA, peft.LoraConfig(**LORA))
    result = merge(base, adapter, tmp_path / "out")
    verification = verify(base, adapter, result.path)
    assert verification.max_abs_diff > 1e-4 >= (verification.max_abs_diff_float64 or 1)


def test_old_names_of_tensors_are_understood(tmp_path: Path) -> None:
    base = save_model(tmp_path / "base", BERT, bert_config(num_labels=3))
    tensors = load_file(base / "model.safetensors")
    old = {
        name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta"): value
        for name, value in tensors.items()
    }
    save_file(old, base / "model.safetensors", metadata={"format": "pt"})
    config = peft.LoraConfig(r=4, target_modules=["query"], task_type="SEQ_CLS")
    adapter = save_adapter(tmp_path / "adapter", base, BERT, config)
    result = merge(base, adapter, tmp_path / "out")
    assert set(open_checkpoint(result.path).entries) == set(old)
    assert verify(base, adapter, result.path).max_abs_diff <= 1e-4


@pytest.mark.slow
def test_minilm_with_a_trained_head_is_merged_within_tolerance(
    minilm_folder: Path, tmp_path: Path, news_rows: Any
) -> None:
    config = peft.LoraConfig(
        r=8, target_modules=["query", "value", "dense"], modules_to_save=["classifier"], task_type="SEQ_CLS"
    )
    adapter = save_adapter(tmp_path / "adapter", minilm_folder, BERT, config, load={"num_labels": 5})
    result = merge(minilm_folder, adapter, tmp_path / "out")
    with quiet():
        tokenizer = transformers.AutoTokenizer.from_pretrained(str(result.path))
        texts = [row["text"] for row in news_rows[:8]]
        batch = dict(tokenizer(texts, truncation=True, max_length=96, padding=True, return_tensors="np"))
    verification = verify_merge(minilm_folder, [AdapterSpec(path=adapter)], result.path, [batch])
    assert verification.max_abs_diff <= 1e-4
    assert verification.num_rows == 8
    assert result.largest_tensor == "bert.embeddings.word_embeddings.weight"
    with safe_open(str(result.path / "model.safetensors"), "np") as file:
        assert np.isfinite(file.get_tensor("classifier.weight")).all()
