"""Every PEFT kind that can be merged: bit for bit what PEFT's own merge computes, and as close as float32 allows."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import pytest
import torch

from compress.adapter import EXACT_KINDS
from compress.merge import AdapterSpec, merge_adapter
from compress.verify_merge import verify_merge
from tests.compress.merge_models import (
    bert_config,
    llama_config,
    load,
    load_unmerged,
    quiet,
    save_adapter,
    save_model,
    token_ids,
)

BERT = "BertForSequenceClassification"
LLAMA = "LlamaForCausalLM"
TARGETS = {BERT: ["query", "value"], LLAMA: ["q_proj", "v_proj"]}
FEEDFORWARD = {BERT: ["output.dense"], LLAMA: ["down_proj"]}
NORMS = {BERT: ["LayerNorm"], LLAMA: ["input_layernorm"]}

# PEFT drops the trained heads of LN tuning when it merges (it puts a wrapper's inner module in their place).
PEFT_MERGES_WRONGLY = {("LN_TUNING", BERT)}


@quiet()
def configs(model_class: str) -> dict[str, Any]:
    """One configuration for each way in which a weight can be changed."""
    targets = TARGETS[model_class]
    lora = {"r": 4, "target_modules": targets}
    return {
        "LORA": peft.LoraConfig(**lora),
        "LORA-rslora": peft.LoraConfig(**lora, lora_alpha=3, use_rslora=True),
        "LORA-dora": peft.LoraConfig(**lora, use_dora=True),
        "LORA-pissa": peft.LoraConfig(**lora, init_lora_weights="pissa"),
        "LORA-olora": peft.LoraConfig(**lora, init_lora_weights="olora"),
        "LORA-orthogonal": peft.LoraConfig(**lora, init_lora_weights="orthogonal"),
        "LORA-patterns": peft.LoraConfig(**lora, rank_pattern={targets[0]: 2}, alpha_pattern={"1.*": 5}),
        "LORA-all-linear": peft.LoraConfig(r=4, target_modules="all-linear"),
        "ADALORA": peft.AdaLoraConfig(init_r=4, target_r=2, total_step=10, target_modules=targets),
        "LOHA": peft.LoHaConfig(**lora),
        "LOKR": peft.LoKrConfig(**lora),
        "IA3": peft.IA3Config(
            target_modules=[*targets, *FEEDFORWARD[model_class]], feedforward_modules=FEEDFORWARD[model_class]
        ),
        "OFT": peft.OFTConfig(r=4, oft_block_size=0, target_modules=targets),
        "BOFT": peft.BOFTConfig(boft_block_size=4, target_modules=targets),
        "VERA": peft.VeraConfig(**lora),
        "VERA-unsaved-projection": peft.VeraConfig(**lora, save_projection=False),
        "PVERA": peft.PveraConfig(**lora),
        "FOURIERFT": peft.FourierFTConfig(n_frequency=20, target_modules=targets),
        "WAVEFT": peft.WaveFTConfig(n_frequency=20, target_modules=targets),
        "VBLORA": peft.VBLoRAConfig(r=4, vector_length=4, num_vectors=16, topk=2, target_modules=targets),
        "HRA": peft.HRAConfig(**lora),
        "LN_TUNING": peft.LNTuningConfig(target_modules=NORMS[model_class]),
        "MISS": peft.MissConfig(**lora),
        "RANDLORA": peft.RandLoraConfig(**lora),
        "ROAD": peft.RoadConfig(group_size=8, target_modules=targets),
        "SHIRA": peft.ShiraConfig(r=2, target_modules=targets),
        "C3A": peft.C3AConfig(block_size=8, target_modules=targets),
        "DELORA": peft.DeloraConfig(target_modules=targets),
        "GRALORA": peft.GraloraConfig(target_modules=targets),
        "TINYLORA": peft.TinyLoraConfig(target_modules=targets),
        "PEANUT": peft.PeanutConfig(target_modules=targets),
        "HIRA": peft.HiraConfig(target_modules=targets),
        "UNILORA": peft.UniLoraConfig(target_modules=targets),
        "BEFT": peft.BeftConfig(target_modules=["value"] if model_class == BERT else targets),
        "DEFT": peft.DeftConfig(target_modules=targets),
    }


NAMES = list(configs(BERT))


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("bases")
    return {
        BERT: save_model(root / "bert", BERT, bert_config(num_labels=3)),
        LLAMA: save_model(root / "llama", LLAMA, llama_config(attention_bias=True)),
    }


def test_every_kind_is_tried() -> None:
    assert {name.split("-")[0] for name in NAMES} | {"TRAINABLE_TOKENS"} == EXACT_KINDS


@pytest.mark.parametrize("model_class", [BERT, pytest.param(LLAMA, marks=pytest.mark.slow)])
@pytest.mark.parametrize("name", NAMES)
def test_merge_equals_peft_bit_for_bit_and_the_unmerged_adapter_within_tolerance(
    name: str, model_class: str, bases: dict[str, Path], tmp_path: Path
) -> None:
    base, config = bases[model_class], configs(model_class)[name]
    config.task_type = "SEQ_CLS" if model_class == BERT else "CAUSAL_LM"
    adapter = save_adapter(tmp_path / "adapter", base, model_class, config)

    result = merge_adapter(base, [AdapterSpec(path=adapter)], tmp_path / "merged")

    merged = load(tmp_path / "merged", model_class).state_dict()
    before = load(base, model_class).state_dict()
    assert any(not torch.equal(merged[key], before[key]) for key in before)
    if (name, model_class) not in PEFT_MERGES_WRONGLY:
        with quiet():
            expected = load_unmerged(base, adapter, model_class).merge_and_unload().state_dict()
        assert [key for key in expected if not torch.equal(expected[key], merged[key])] == []
    verification = verify_merge(base, [AdapterSpec(path=adapter)], result.path, [token_ids()])
    assert verification.max_abs_diff <= 1e-4
    assert verification.max_abs_diff == verification.max_abs_diff_saved
    assert verification.num_rows == 4


@pytest.mark.parametrize("name", ["LORA", "LORA-dora", "LORA-pissa", "IA3"])
def test_convolution_style_weights_are_merged_the_right_way_round(name: str, tmp_path: Path) -> None:
    import transformers

    sizes = {"vocab_size": 96, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
    base = save_model(
        tmp_path / "base", "GPT2LMHeadModel", transformers.GPT2Config(**sizes, bos_token_id=1, eos_token_id=1)
    )
    config = configs(BERT)[name]
    config.target_modules, config.task_type = {"c_attn", "c_proj"}, "CAUSAL_LM"
    if name == "IA3":
        config.feedforward_modules = set()
    config.fan_in_fan_out = True
    adapter = save_adapter(tmp_path / "adapter", base, "GPT2LMHeadModel", config)
    result = merge_adapter(base, [AdapterSpec(path=adapter)], tmp_path / "merged")
    verification = verify_merge(base, [AdapterSpec(path=adapter)], result.path, [token_ids()])
    assert verification.max_abs_diff <= 1e-4
