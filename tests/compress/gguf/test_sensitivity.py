"""From a small seeded Llama to a file within its budget, with the real quantizer and the real runtime."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace

import gguf
import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray

from compress.gguf.allocate import Allocator, Budget
from compress.gguf.collect_torch import collect_imatrix_torch
from compress.gguf.fisher import Fisher, collect_fisher
from compress.gguf.fit_budget import quantize_to_budget
from compress.gguf.imatrix_data import Imatrix
from compress.gguf.quantize import GgufQuantConfig, quantize_gguf
from compress.gguf.round_trip import round_trip
from compress.gguf.sensitivity import CANDIDATES, Sensitivity, measure_sensitivity
from compress.gguf.types import TENSOR_TYPES
from edgesmith.errors import ArtifactError, UnsupportedError, UsageError
from export.gguf.rows import interleave_rotary
from export.gguf.tensor_names import tensor_names
from export.gguf.to_gguf import to_gguf
from serve.runtime.llama_library import LlamaContext, LlamaModel
from tests.export.gguf.conftest import TINY, save_model, save_tokenizer

SIZES = TINY | {"hidden_size": 64, "intermediate_size": 256, "head_dim": 16, "num_hidden_layers": 2}
WIDE_TYPES = [name for name, kind in TENSOR_TYPES.items() if name in CANDIDATES and kind.num_values == 32]


@dataclass(frozen=True, kw_only=True)
class Subject:
    checkpoint: Path
    source: Path
    names: dict[str, str]
    orders: dict[str, NDArray[np.intp]]
    model: torch.nn.Module
    fisher: Fisher
    imatrix: Imatrix
    table: Sensitivity


def windows(count: int, *, seed: int = 0) -> list[list[int]]:
    """Tokens that the small model finds as likely as any."""
    return np.random.default_rng(seed).integers(3, 1000, (count, 64)).tolist()


@pytest.fixture(scope="module")
def subject(tmp_path_factory: pytest.TempPathFactory) -> Subject:
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    save_model(checkpoint, transformers.LlamaConfig(**SIZES, tie_word_embeddings=True))
    save_tokenizer(checkpoint)
    source = tmp_path_factory.mktemp("gguf") / "model.gguf"
    to_gguf(checkpoint, source, dtype="f32")
    names = tensor_names(checkpoint)
    orders = {
        f"blk.{layer}.{kind}.weight": interleave_rotary(heads, 16)
        for layer in range(2)
        for kind, heads in (("attn_q", 4), ("attn_k", 2))
    }
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    fisher = collect_fisher(model, names, windows(8), row_orders=orders)
    imatrix = collect_imatrix_torch(checkpoint, names, windows(8))
    return Subject(
        checkpoint=checkpoint,
        source=source,
        names=names,
        orders=orders,
        model=model,
        fisher=fisher,
        imatrix=imatrix,
        table=measure_sensitivity(source, fisher, imatrix=imatrix, rows=10_000),
    )


def measure(reference: Path) -> Callable[[Path], float]:
    """Mean KL divergence of a file from an unquantized one on text that was not calibrated on."""

    def log_p(path: Path) -> NDArray[np.float64]:
        with LlamaModel(path) as model, LlamaContext(model, num_tokens=64) as context:
            logits = np.concatenate([context.run(window) for window in windows(4, seed=1)]).astype(np.float64)
        return logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)

    expected = log_p(reference)
    return lambda path: float((np.exp(expected) * (expected - log_p(path))).sum(axis=-1).mean())


@pytest.mark.parametrize("type_name", ["Q4_0", "Q4_K", "Q6_K", "IQ4_NL", "IQ3_S", "F16"])
def test_rounding_in_memory_is_what_the_quantizer_stores(type_name: str, fitting_model: Path, tmp_path: Path) -> None:
    name = "blk.0.ffn_down.weight"
    quantize_gguf(fitting_model, tmp_path / "out.gguf", GgufQuantConfig(type="Q8_0", tensor_types={name: type_name}))
    stored = {one.name: one for one in gguf.GGUFReader(tmp_path / "out.gguf").tensors}[name]
    original = {one.name: one for one in gguf.GGUFReader(fitting_model).tensors}[name]
    restored = round_trip(np.asarray(original.data), type_name)
    expected = gguf.quants.dequantize(stored.data, stored.tensor_type).reshape(restored.shape)
    np.testing.assert_allclose(restored, expected, rtol=1e-6, atol=1e-7)


def test_rows_that_do_not_fit_a_type_are_refused() -> None:
    with pytest.raises(UnsupportedError, match=r"rows of 64 values cannot be stored as Q4_K, which needs .* 256"):
        round_trip(np.zeros((2, 64), np.float32), "Q4_K")


def test_the_predicted_damage_is_the_measured_one(subject: Subject, tmp_path: Path) -> None:
    """Of single tensors, rounded coarsely enough to stand above the rounding of activations."""
    measured_by = measure(subject.source)
    exact = {one.name: one.type for one in subject.table.fixed} | {one.name: "F16" for one in subject.table.tensors}
    damage = {(one.name, choice.type): choice.damage for one in subject.table.tensors for choice in one.choices}
    for name, type_name in (
        ("blk.0.attn_q.weight", "IQ4_NL"),
        ("blk.1.attn_v.weight", "IQ4_NL"),
        ("blk.1.ffn_down.weight", "IQ3_S"),
        ("token_embd.weight", "Q5_0"),
    ):
        kinds = {one: kind for one, kind in exact.items() if kind != "F32"} | {name: type_name}
        out = tmp_path / "out.gguf"
        quantize_gguf(subject.source, out, GgufQuantConfig(type="Q8_0", tensor_types=kinds), imatrix=subject.imatrix)
        assert 0.3 < damage[name, type_name] / measured_by(out) < 3, name


def test_rows_are_weighed_in_the_order_of_the_file(subject: Subject) -> None:
    unordered = collect_fisher(subject.model, subject.names, windows(8))
    for name, order in subject.orders.items():
        np.testing.assert_array_equal(unordered.factors[name].rows[:, order], subject.fisher.factors[name].rows)


def test_reading_a_model_leaves_it_as_it_was(subject: Subject) -> None:
    before = {name: (one.detach().clone(), one.requires_grad) for name, one in subject.model.named_parameters()}
    subject.model.train()
    collect_fisher(subject.model, subject.names, windows(1))
    assert subject.model.training
    for name, one in subject.model.named_parameters():
        assert one.grad is None
        assert one.requires_grad == before[name][1]
        assert torch.equal(one, before[name][0])


def test_the_same_seed_gives_the_same_table(subject: Subject) -> None:
    again = collect_fisher(subject.model, subject.names, windows(8), row_orders=subject.orders)
    for threads in (1, 2):
        assert measure_sensitivity(
            subject.source, again, imatrix=subject.imatrix, rows=10_000, threads=threads
        ) == replace(subject.table)


def test_a_sample_of_rows_stands_for_all(subject: Subject) -> None:
    some = measure_sensitivity(subject.source, subject.fisher, imatrix=subject.imatrix, rows=48)
    every = {(one.name, choice.type): choice.damage for one in subject.table.tensors for choice in one.choices}
    ratios = [
        choice.damage / every[one.name, choice.type]
        for one in some.tensors
        for choice in one.choices
        if (one.name, choice.type) in every
    ]
    assert len(ratios) > 50
    assert 0.9 < np.exp(np.mean(np.log(ratios))) < 1.1
    assert max(abs(np.log(ratios))) < np.log(1.5)


def test_types_fit_the_columns_and_larger_ones_do_less_damage(subject: Subject) -> None:
    for tensor in subject.table.tensors:
        types = {choice.type for choice in tensor.choices}
        if not tensor.name.endswith("ffn_down.weight"):  # 64 columns
            assert types <= set(WIDE_TYPES)
        sizes = [choice.size_bytes for choice in tensor.choices]
        damages = [choice.damage for choice in tensor.choices]
        assert sizes == sorted(set(sizes))
        assert damages == sorted(damages, reverse=True)
    assert any("Q3_K" in {choice.type for choice in one.choices} or
               "IQ3_S" in {choice.type for choice in one.choices} for one in subject.table.tensors)  # fmt: skip


def test_without_an_importance_matrix_no_type_that_needs_one_is_chosen(subject: Subject) -> None:
    found = measure_sensitivity(subject.source, subject.fisher, candidates=("IQ3_XXS", "IQ2_XS", "Q8_0"))
    assert {choice.type for one in found.tensors for choice in one.choices} == {"Q8_0"}


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_narrow_sources_are_read_as_they_are(subject: Subject, tmp_path: Path, dtype: str) -> None:
    source = tmp_path / "narrow.gguf"
    to_gguf(subject.checkpoint, source, dtype=dtype)  # type: ignore[arg-type]
    narrow = measure_sensitivity(source, subject.fisher, imatrix=subject.imatrix, rows=10_000, candidates=("Q4_0",))
    wide = measure_sensitivity(subject.source, subject.fisher, imatrix=subject.imatrix, rows=10_000,
                               candidates=("Q4_0",))  # fmt: skip
    for one, other in zip(narrow.tensors, wide.tensors, strict=True):
        assert one.choices[0].damage == pytest.approx(other.choices[0].damage, rel=0.1)


def test_a_saved_table_is_read_again(subject: Subject, tmp_path: Path) -> None:
    subject.table.save(tmp_path / "table.json")
    assert Sensitivity.load(tmp_path / "table.json") == subject.table
    for content in ("", "[]", "{}", '{"tensors": 1}'):
        (tmp_path / "bad.json").write_text(content)
        with pytest.raises(ArtifactError, match="is no table of sensitivities"):
            Sensitivity.load(tmp_path / "bad.json")


def test_the_file_keeps_a_budget_of_bytes(subject: Subject, tmp_path: Path) -> None:
    least = Allocator(subject.table).allocate(Budget(max_mb=10)).size_bytes
    for max_mb in (0.8 * least / 1e6, 0.7 * least / 1e6):
        built = quantize_to_budget(
            subject.source, tmp_path / "out.gguf", subject.table, Budget(max_mb=max_mb), imatrix=subject.imatrix
        )
        size_bytes = (tmp_path / "out.gguf").stat().st_size
        assert built.result.size_bytes == size_bytes <= max_mb * 1e6
        assert 0 <= built.allocation.size_bytes - size_bytes < 2000
        assert len(built.builds) == 1
        found = {one.name: one.type for one in built.result.tensors}
        assert found | built.allocation.tensor_types == found


def test_the_file_keeps_a_budget_of_bits(subject: Subject, tmp_path: Path) -> None:
    built = quantize_to_budget(
        subject.source, tmp_path / "out.gguf", subject.table, Budget(bits_per_weight=6.0), imatrix=subject.imatrix
    )
    assert 5.8 < built.result.bits_per_weight <= 6.0
    assert built.result.bits_per_weight == pytest.approx(built.allocation.bits_per_weight)


def test_the_file_keeps_a_budget_of_divergence(subject: Subject, tmp_path: Path) -> None:
    measured_by = measure(subject.source)
    sizes = []
    for most in (0.03, 0.01):
        built = quantize_to_budget(
            subject.source, tmp_path / "out.gguf", subject.table, Budget(max_mean_kld=most),
            imatrix=subject.imatrix, measure=measured_by,
        )  # fmt: skip
        assert measured_by(tmp_path / "out.gguf") == built.measured_kld
        assert built.measured_kld is not None
        assert 0.5 * most < built.measured_kld <= most
        assert len(built.builds) <= 3
        sizes.append(built.result.size_bytes)
    assert sizes[0] < sizes[1]


def test_chosen_types_beat_one_type_for_all(subject: Subject, tmp_path: Path) -> None:
    measured_by = measure(subject.source)
    for preset in ("Q4_0", "Q5_0"):
        uniform = quantize_gguf(
            subject.source, tmp_path / "one.gguf", GgufQuantConfig(type=preset), imatrix=subject.imatrix
        )
        chosen = quantize_to_budget(
            subject.source, tmp_path / "chosen.gguf", subject.table, Budget(max_mb=uniform.size_bytes / 1e6),
            imatrix=subject.imatrix,
        )  # fmt: skip
        assert chosen.result.size_bytes <= uniform.size_bytes
        assert measured_by(tmp_path / "chosen.gguf") < 0.95 * measured_by(tmp_path / "one.gguf")


def test_another_model_is_refused(subject: Subject, tmp_path: Path) -> None:
    name = "blk.0.ffn_down.weight"
    factor = subject.fisher.factors[name]
    other = replace(
        subject.fisher, factors=dict(subject.fisher.factors) | {name: replace(factor, rows=factor.rows[:, :-1])}
    )
    with pytest.raises(UsageError, match=r"\[1, 63, 256\] experts, rows and columns .* \[1, 64, 256\] in the GGUF"):
        measure_sensitivity(subject.source, other)
    with pytest.raises(UsageError, match="none of the names is a matrix of the model"):
        collect_fisher(subject.model, {"x.weight": "y.weight"}, windows(1))
    quantize_gguf(subject.source, tmp_path / "small.gguf", GgufQuantConfig(type="Q8_0"))
    with pytest.raises(UnsupportedError, match="already"):
        measure_sensitivity(tmp_path / "small.gguf", subject.fisher)


def test_no_text_is_refused(subject: Subject) -> None:
    with pytest.raises(UsageError, match="no calibration text"):
        collect_fisher(subject.model, subject.names, [[1], []])


@pytest.mark.parametrize(("name", "expected"), [("token_embd.weight", "Q8_0"), ("blk.0.attn_v.weight", "Q4_0")])
def test_of_what_was_not_measured_only_embeddings_are_kept_at_eight_bits(
    subject: Subject, name: str, expected: str
) -> None:
    left = {one: factor for one, factor in subject.fisher.factors.items() if one != name}
    found = measure_sensitivity(subject.source, replace(subject.fisher, factors=left), candidates=("Q4_0", "Q8_0"))
    allocation = Allocator(found).allocate(Budget(max_mean_kld=10.0))
    assert allocation.not_measured == (name,)
    assert allocation.tensor_types[name] == expected


class TwoLayers(torch.nn.Module):
    """Says the next token from the last one alone."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.inputs = torch.randn(50, 12)
        self.first, self.second = torch.nn.Linear(12, 16, bias=False), torch.nn.Linear(16, 50, bias=False)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> SimpleNamespace:
        del use_cache
        return SimpleNamespace(logits=self.second(torch.tanh(self.first(self.inputs[input_ids]))) * 2)


@pytest.mark.parametrize("name", ["first", "second"])
def test_damage_is_the_divergence_that_small_changes_make(name: str) -> None:
    """In nats per token, not twice or half of it: against the divergence itself, in double precision."""
    model = TwoLayers()
    texts = np.random.default_rng(0).integers(0, 50, (40, 250)).tolist()
    fisher = collect_fisher(model, {"first.weight": "first", "second.weight": "second"}, texts)
    model.double().inputs = model.inputs.double()
    tokens, weight = torch.tensor(texts[:16]).reshape(1, -1), model.get_parameter(f"{name}.weight")
    random = np.random.default_rng(1)
    predicted, measured = [], []
    with torch.no_grad():
        expected, unchanged = model(tokens, False).logits.log_softmax(-1), weight.clone()
        for _ in range(40):
            change = 1e-3 * random.standard_normal(tuple(weight.shape)).astype(np.float32)
            factor = fisher.factors[name]
            predicted.append(float(factor.damage_of_rows(change) @ factor.rows[0]))
            weight.copy_(unchanged + torch.from_numpy(change))
            changed = model(tokens, False).logits.log_softmax(-1)
            measured.append(float((expected.exp() * (expected - changed)).sum(-1).mean()))
    assert np.mean(predicted) == pytest.approx(np.mean(measured), rel=0.1)


def test_a_divergence_needs_text_to_measure_on(subject: Subject, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="needs text to measure on"):
        quantize_to_budget(subject.source, tmp_path / "out.gguf", subject.table, Budget(max_mean_kld=0.1))
