"""A mixture of experts, from a small seeded checkpoint to a file within its budget."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from compress.gguf.allocate import Allocator, Budget
from compress.gguf.collect_runtime import collect_imatrix_runtime
from compress.gguf.collect_torch import collect_imatrix_torch
from compress.gguf.fisher import Fisher, FisherFactor, collect_fisher
from compress.gguf.fit_budget import quantize_to_budget
from compress.gguf.imatrix_data import Imatrix
from compress.gguf.quantize import GgufQuantConfig, quantize_gguf
from compress.gguf.sensitivity import Sensitivity, measure_sensitivity
from compress.gguf.tensor_factors import find_factors
from edgesmith.progress import Progress
from export.gguf.tensor_names import has_experts, tensor_names
from export.gguf.to_gguf import to_gguf
from serve.runtime.gguf_file import read_gguf
from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

SIZES = TINY | {
    "hidden_size": 256, "intermediate_size": 256, "moe_intermediate_size": 256, "head_dim": 64,
    "num_attention_heads": 4, "num_key_value_heads": 2, "num_hidden_layers": 2, "num_experts": 4,
    "num_experts_per_tok": 2, "norm_topk_prob": True, "tie_word_embeddings": True,
}  # fmt: skip
WINDOWS: list[list[int]] = np.random.default_rng(0).integers(3, 1000, (4, 64)).tolist()
EXPERTS = {f"blk.{layer}.ffn_{part}_exps.weight" for layer in range(2) for part in ("gate", "up", "down")}


class Notes(Progress):
    """Keeps what it is told."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def note(self, text: str) -> None:
        self.said.append(text)


@dataclass(frozen=True, kw_only=True)
class Subject:
    checkpoint: Path
    source: Path
    model: torch.nn.Module
    fisher: Fisher
    imatrix: Imatrix
    table: Sensitivity


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    folder = tmp_path_factory.mktemp("experts")
    checkpoint, source = folder / "checkpoint", folder / "model.gguf"
    checkpoint.mkdir()
    save_model(checkpoint, transformers.Qwen3MoeConfig(**SIZES))
    save_tokenizer(checkpoint)
    to_gguf(checkpoint, source, dtype="f32")
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    fisher = collect_fisher(model, tensor_names(checkpoint), WINDOWS)
    imatrix = collect_imatrix_runtime(source, WINDOWS)
    table = measure_sensitivity(source, fisher, imatrix=imatrix, rows=256, candidates=("IQ3_XXS", "Q4_K", "Q8_0"))
    return Subject(checkpoint=checkpoint, source=source, model=model, fisher=fisher, imatrix=imatrix, table=table)


def test_checkpoints_with_experts_are_told_from_others(subject: Subject, tmp_path: Path) -> None:
    assert has_experts(subject.checkpoint)
    save_model(tmp_path, transformers.LlamaConfig(**TINY))
    assert not has_experts(tmp_path)


def test_torch_says_which_matrices_it_has_no_inputs_of(subject: Subject) -> None:
    notes = Notes()
    found = collect_imatrix_torch(subject.checkpoint, tensor_names(subject.checkpoint), WINDOWS[:1], progress=notes)
    assert not EXPERTS & found.entries.keys()
    assert subject.imatrix.entries.keys() >= EXPERTS
    (note,) = notes.said
    for part in ("gate", "up", "down"):
        assert f"2 × blk.*.ffn_{part}_exps.weight" in note
    assert "norm" not in note
    assert "ffn_gate_inp" not in note  # never quantized


def test_gradients_of_experts_are_those_of_their_rows(subject: Subject) -> None:
    """What the model keeps in one parameter is told apart: gate, then up, expert by expert."""
    names = tensor_names(subject.checkpoint)
    found = collect_fisher(subject.model, names, WINDOWS[:1])
    parameters = [
        subject.model.get_parameter(f"model.layers.1.mlp.experts.{part}") for part in ("gate_up_proj", "down_proj")
    ]
    before = parameters[0].requires_grad
    subject.model.requires_grad_(True).eval()
    log_p = subject.model(input_ids=torch.tensor(WINDOWS[:1]), use_cache=False).logits[0].log_softmax(-1)
    labels = torch.multinomial(log_p.detach().exp(), 1, generator=torch.Generator().manual_seed(0))
    gradients = torch.autograd.grad(log_p.gather(1, labels).sum(), parameters)
    subject.model.requires_grad_(before)
    gate, up = gradients[0].square().chunk(2, dim=1)
    for part, squares in (("gate", gate), ("up", up), ("down", gradients[1].square())):
        factor = found.factors[f"blk.1.ffn_{part}_exps.weight"]
        np.testing.assert_allclose(factor.rows, squares.sum(2).double().numpy() / 64, rtol=1e-3, atol=1e-12)
        shares = squares.sum(1) / squares.sum((1, 2))[:, None]
        np.testing.assert_allclose(factor.columns, shares.double().numpy(), rtol=1e-3, atol=1e-8)


def test_a_type_that_needs_an_importance_matrix_serves_experts(subject: Subject, tmp_path: Path) -> None:
    kinds = dict.fromkeys(EXPERTS, "IQ3_XXS")
    config = GgufQuantConfig(type="Q4_K", tensor_types=kinds)
    done = quantize_gguf(subject.source, tmp_path / "out.gguf", config, imatrix=subject.imatrix)
    assert {one.name for one in done.tensors if one.type == "IQ3_XXS"} == EXPERTS


def test_a_budget_below_eight_bits_is_kept(subject: Subject, tmp_path: Path) -> None:
    eight = quantize_gguf(subject.source, tmp_path / "eight.gguf", GgufQuantConfig(type="Q8_0")).size_bytes
    max_mb = 0.55 * eight / 1e6
    built = quantize_to_budget(
        subject.source, tmp_path / "out.gguf", subject.table, Budget(max_mb=max_mb), imatrix=subject.imatrix
    )
    assert (tmp_path / "out.gguf").stat().st_size <= max_mb * 1e6
    assert not built.allocation.not_measured
    assert {one.name for one in subject.table.tensors if one.is_measured} >= EXPERTS


@pytest.mark.parametrize("is_weighted", [True, False])
def test_experts_without_gradients_are_estimated_and_not_pinned(subject: Subject, is_weighted: bool) -> None:
    left = {name: one for name, one in subject.fisher.factors.items() if "blk.0." not in name or name not in EXPERTS}
    notes = Notes()
    found = measure_sensitivity(
        subject.source, replace(subject.fisher, factors=left), imatrix=subject.imatrix if is_weighted else None,
        rows=256, candidates=("Q3_K", "Q4_K", "Q8_0"), progress=notes,
    )  # fmt: skip
    expected = {name for name in EXPERTS if "blk.0." in name}
    assert {one.name for one in found.tensors if not one.is_measured} == expected
    assert any("estimated" in said and "blk.0.ffn_gate_exps.weight" in said for said in notes.said)
    least = Allocator(found).allocate(Budget(bits_per_weight=3.8))
    assert set(least.not_measured) == expected
    assert {least.tensor_types[name] for name in expected} == {"Q3_K"}


def test_an_estimate_is_exact_where_errors_cost_the_same_everywhere(subject: Subject) -> None:
    """Gradients made up so that an error in any output of a feed-forward layer costs 3, in others 100."""
    file = read_gguf(subject.source)

    def made_up(imatrix: Imatrix | None) -> dict[str, FisherFactor]:
        factors = {}
        for name, real in subject.fisher.factors.items():
            entry = imatrix.entries[name] if imatrix is not None else None
            squares = np.ones_like(real.columns) if entry is None else entry.sums / 256
            totals = squares.sum(axis=1, keepdims=True)
            cost = 3.0 if ".ffn_" in name else 100.0
            factors[name] = FisherFactor(rows=cost * totals * np.ones_like(real.rows), columns=squares / totals)
        return factors

    for imatrix in (None, subject.imatrix):
        every = made_up(imatrix)
        left = {name: one for name, one in every.items() if name != "blk.0.ffn_gate_exps.weight"}
        found = find_factors(file, replace(subject.fisher, factors=left), imatrix)
        expected, estimated = (factors["blk.0.ffn_gate_exps.weight"] for factors in (every, found))
        np.testing.assert_allclose(estimated.rows, expected.rows, rtol=1e-9)
        np.testing.assert_allclose(estimated.columns, expected.columns, rtol=1e-9)
    without = {name: one for name, one in every.items() if name != "token_embd.weight"}
    assert "token_embd.weight" not in find_factors(file, replace(subject.fisher, factors=without), None)
