from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from compress.distill import losses
from compress.distill.losses import DIVERGENCES, bucketed, divergence

Floats = NDArray[np.float64]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) * 2


def softmax(values: Floats) -> Floats:
    raised = np.exp(values - values.max(axis=-1, keepdims=True))
    return np.asarray(raised / raised.sum(axis=-1, keepdims=True))


def kl(p: Floats, q: Floats) -> Floats:
    return np.asarray((p * np.log(p / q)).sum(axis=-1))


REFERENCES: dict[str, Callable[[Floats, Floats], Floats]] = {
    "forward-kl": lambda student, teacher: kl(teacher, student),
    "reverse-kl": lambda student, teacher: kl(student, teacher),
    "jsd": lambda student, teacher: (
        0.5 * kl(teacher, (student + teacher) / 2) + 0.5 * kl(student, (student + teacher) / 2)
    ),
}


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_divergence_is_that_of_the_softened_probabilities_times_the_squared_temperature(
    kind: str, temperature: float
) -> None:
    student, teacher = random(6, 5), random(6, 5, seed=1)
    softened = [softmax(one.numpy() / temperature) for one in (student, teacher)]
    expected = REFERENCES[kind](*softened) * temperature**2
    np.testing.assert_allclose(divergence(student, teacher, kind=kind, temperature=temperature), expected, rtol=1e-9)


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_divergence_of_equal_predictions_is_zero(kind: str) -> None:
    logits = random(4, 7)
    assert divergence(logits, logits, kind=kind, temperature=2.0).abs().max() < 1e-12


def test_jensen_shannon_is_symmetric_and_at_most_log_2() -> None:
    student, teacher = random(50, 7) * 10, random(50, 7, seed=1) * 10
    forth, back = (divergence(*pair, kind="jsd", temperature=1.0) for pair in ((student, teacher), (teacher, student)))
    torch.testing.assert_close(forth, back)
    assert forth.max() <= np.log(2) + 1e-12


def test_classes_without_probability_add_nothing_and_have_a_gradient() -> None:
    student = torch.zeros(1, 3, requires_grad=True)
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    loss = losses.forward_kl(torch.log_softmax(student, dim=-1), teacher)
    loss.sum().backward()
    assert loss.item() == pytest.approx(np.log(3 / 2), rel=1e-6)
    assert student.grad is not None
    assert torch.isfinite(student.grad).all()


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_keeping_all_classes_gives_the_whole_divergence(kind: str) -> None:
    student, teacher = random(6, 9).float(), random(6, 9, seed=1).float()
    ids = teacher.topk(9, dim=-1).indices
    kept = [bucketed(one, ids, temperature=2.0) for one in (student, teacher)]
    torch.testing.assert_close(
        DIVERGENCES[kind](*kept) * 4, divergence(student, teacher, kind=kind, temperature=2.0), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("kind", sorted(DIVERGENCES))
def test_fewer_classes_never_say_more(kind: str) -> None:
    student, teacher = random(30, 9), random(30, 9, seed=1)
    found = []
    for top_k in (1, 3, 8, 9):
        ids = teacher.topk(top_k, dim=-1).indices
        kept = [bucketed(one, ids, temperature=1.0) for one in (student, teacher)]
        found.append(DIVERGENCES[kind](*kept))
    assert all((less <= more + 1e-12).all() for less, more in itertools.pairwise(found))


def test_kept_classes_and_the_rest_are_a_distribution() -> None:
    logits = random(4, 9)
    kept = bucketed(logits, logits.topk(3, dim=-1).indices, temperature=3.0)
    np.testing.assert_allclose(kept.exp().sum(dim=-1), 1, rtol=1e-12)
    np.testing.assert_allclose(kept[:, :3].exp(), np.sort(softmax(logits.numpy() / 3))[:, :-4:-1], rtol=1e-9)


def test_hard_labels_are_cross_entropy_and_nothing_without_a_label() -> None:
    logits, labels = random(3, 4), torch.tensor([2, -100, 0])
    logs = np.log(softmax(logits.numpy()))
    np.testing.assert_allclose(losses.hard_labels(logits, labels), [-logs[0, 2], 0, -logs[2, 0]], rtol=1e-9)


def test_hidden_distance_is_relative_to_the_teachers_state() -> None:
    student, teacher = random(2, 3, 8), random(2, 3, 8, seed=1)
    difference = ((student - teacher).numpy() ** 2).sum(axis=-1)
    expected = difference / (teacher.numpy() ** 2).sum(axis=-1)
    np.testing.assert_allclose(losses.hidden_distances(student, teacher), expected, rtol=1e-9)
    torch.testing.assert_close(
        losses.hidden_distances(student * 1000, teacher * 1000), losses.hidden_distances(student, teacher)
    )


def cosines(vectors: Tensor) -> Floats:
    units = vectors.numpy() / np.linalg.norm(vectors.numpy(), axis=1, keepdims=True)
    return np.asarray(units @ units.T)


def test_similarity_distance_compares_the_cosines_of_rows_of_any_width() -> None:
    student, teacher = random(5, 8), random(5, 12, seed=1)
    expected = ((cosines(student) - cosines(teacher)) ** 2).sum(axis=1) / 4
    np.testing.assert_allclose(losses.similarity_distances(student, teacher), expected, rtol=1e-9)
    assert losses.similarity_distances(student[:1], teacher[:1]).abs().max() < 1e-12


def test_similarity_and_cosine_of_scaled_vectors_are_zero() -> None:
    vectors = random(5, 8)
    assert losses.similarity_distances(3 * vectors, vectors).abs().max() < 1e-12
    assert losses.cosine_distances(3 * vectors, vectors).abs().max() < 1e-12


@pytest.mark.parametrize(
    "loss",
    [
        lambda student, teacher: divergence(student, teacher, kind="forward-kl", temperature=2.0),
        losses.hidden_distances,
        losses.cosine_distances,
    ],
)
def test_pieces_of_a_batch_sum_to_the_whole(loss: Any) -> None:
    student, teacher = random(6, 5), random(6, 5, seed=1)
    pieces = sum(loss(student[part], teacher[part]).sum() for part in (slice(0, 1), slice(1, 4), slice(4, 6)))
    torch.testing.assert_close(loss(student, teacher).sum(), pieces)
