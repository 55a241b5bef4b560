from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from compress.gguf.allocate import Allocator, Budget
from compress.gguf.sensitivity import Choice, FixedTensor, Sensitivity, TensorSensitivity
from compress.gguf.types import TENSOR_TYPES
from edgesmith.errors import UsageError

TYPES = ("Q4_0", "Q5_0", "Q8_0")


def table(*weights: float, num_values: int = 32 * 1024, fixed: tuple[FixedTensor, ...] = ()) -> Sensitivity:
    """Tensors of one size, each as sensitive as its weight says."""
    kinds = [TENSOR_TYPES[name] for name in TYPES]
    return Sensitivity(
        tensors=tuple(
            TensorSensitivity(
                name=f"blk.{index}.ffn_up.weight",
                num_values=num_values,
                choices=tuple(
                    Choice(kind.name, kind.size_bytes(num_values), weight * 4.0**-kind.bits_per_weight)
                    for kind in kinds
                ),
            )
            for index, weight in enumerate(weights)
        ),
        fixed=fixed,
        header_bytes=1000,
        alignment=32,
    )


def test_the_more_sensitive_tensor_gets_more_bits() -> None:
    one_each = Allocator(table(1, 100)).allocate(Budget(bits_per_weight=(4.5 + 8.5) / 2))
    assert one_each.tensor_types == {"blk.0.ffn_up.weight": "Q4_0", "blk.1.ffn_up.weight": "Q8_0"}


def test_equally_sensitive_tensors_get_the_same_type_when_there_is_room_for_it() -> None:
    assert set(Allocator(table(1, 1, 1)).allocate(Budget(bits_per_weight=5.5)).tensor_types.values()) == {"Q5_0"}


@given(weights=st.lists(st.floats(0.01, 100), min_size=1, max_size=6), budgets=st.lists(st.floats(4.6, 9), min_size=2))
@settings(max_examples=100, deadline=None)
def test_more_bits_are_never_predicted_worse_and_the_size_is_kept(weights: list[float], budgets: list[float]) -> None:
    sensitivity = table(*weights)
    allocator = Allocator(sensitivity)
    allocations = [allocator.allocate(Budget(bits_per_weight=bits)) for bits in sorted(budgets)]
    damages = [one.predicted_kld for one in allocations]
    assert all(later <= earlier * (1 + 1e-12) for earlier, later in itertools.pairwise(damages))
    for allocation, bits in zip(allocations, sorted(budgets), strict=True):
        assert allocation.bits_per_weight <= bits
        stored = allocator.allocate(Budget(max_mb=allocation.size_bytes / 1e6))
        assert stored.size_bytes <= allocation.size_bytes
        assert stored.predicted_kld <= allocation.predicted_kld * (1 + 1e-12)


def test_a_divergence_is_bought_with_the_fewest_bytes() -> None:
    allocator = Allocator(table(1, 10, 100))
    bought = allocator.allocate(Budget(max_mean_kld=0.01))
    assert bought.predicted_kld <= 0.01
    with_less = allocator.allocate(Budget(max_mb=(bought.size_bytes - 1) / 1e6))
    assert with_less.predicted_kld > 0.01


def test_a_scale_above_one_buys_more_bytes() -> None:
    allocator = Allocator(table(1, 10, 100))
    exact, doubled = (allocator.allocate(Budget(max_mean_kld=0.01), scale=scale) for scale in (1.0, 2.0))
    assert doubled.size_bytes > exact.size_bytes
    assert doubled.predicted_kld <= 0.01


def test_tensors_without_choice_count_and_are_reported() -> None:
    norm = FixedTensor(name="output_norm.weight", type="F32", num_values=1000, size_bytes=4000, why="vector")
    unknown = FixedTensor(name="blk.0.x.weight", type="Q8_0", num_values=3200, size_bytes=3400, why="not measured")
    without = Allocator(table(1)).allocate(Budget(max_mb=1))
    allocation = Allocator(table(1, fixed=(norm, unknown))).allocate(Budget(max_mb=1))
    assert allocation.size_bytes == without.size_bytes + 4000 + 3400 + -3400 % 32
    assert allocation.tensor_types == without.tensor_types | {"blk.0.x.weight": "Q8_0"}
    assert allocation.not_measured == ("blk.0.x.weight",)


def test_a_budget_below_the_smallest_types_names_the_least() -> None:
    with pytest.raises(UsageError, match=r"0\.01 MB is less than these types can reach: 0\.020 MB is the least"):
        Allocator(table(1)).allocate(Budget(max_mb=0.01))
    with pytest.raises(UsageError, match="mean KLD 1e-09 is less than these types can reach"):
        Allocator(table(1)).allocate(Budget(max_mean_kld=1e-9))


def test_a_budget_is_one_positive_figure() -> None:
    with pytest.raises(UsageError, match="bits_per_weight and max_mb"):
        Budget(bits_per_weight=4, max_mb=3)
    with pytest.raises(UsageError, match="none"):
        Budget()
    for value in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(UsageError, match="max_mb is"):
            Budget(max_mb=value)
