"""What a student can learn from its teacher, as pure functions: tensors in, one figure for every item out.

An item is whatever a mean is taken over in the end: a row, or a token. None of these functions takes that mean, so
that a batch in pieces gives the same sum as the whole. Axes: N items, C classes, K kept classes, B rows, H hidden.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

__all__ = [
    "DIVERGENCES",
    "bucketed",
    "cosine_distances",
    "divergence",
    "forward_kl",
    "hard_labels",
    "hidden_distances",
    "jensen_shannon",
    "reverse_kl",
    "similarity_distances",
]

IGNORED = -100
"""The label of an item that has none."""


def forward_kl(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """KL(teacher ‖ student) of each item, from log-probabilities; the student covers all that the teacher does.

    Source: Hinton, Vinyals, Dean: Distilling the Knowledge in a Neural Network, 2015, section 2.
    """
    return _expected_difference(teacher_NC, student_NC)


def reverse_kl(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """KL(student ‖ teacher) of each item: the student keeps to what the teacher finds likely.

    Source: Gu et al.: MiniLLM, 2024, section 2.1.
    """
    return _expected_difference(student_NC, teacher_NC)


def jensen_shannon(student_NC: Tensor, teacher_NC: Tensor) -> Tensor:
    """Half KL(teacher ‖ mean) and half KL(student ‖ mean) of each item, the mean being that of the two.

    Source: Agarwal et al.: On-Policy Distillation of Language Models, 2024, section 2.1, β = 0.5.
    """
    mean_NC = torch.logaddexp(student_NC, teacher_NC) - math.log(2)
    return 0.5 * (_expected_difference(teacher_NC, mean_NC) + _expected_difference(student_NC, mean_NC))


DIVERGENCES: Mapping[str, Callable[[Tensor, Tensor], Tensor]] = {
    "forward-kl": forward_kl,
    "reverse-kl": reverse_kl,
    "jsd": jensen_shannon,
}
"""As options name them."""


def divergence(student_NC: Tensor, teacher_NC: Tensor, *, kind: str, temperature: float) -> Tensor:
    """Compare softened predictions, item by item.

    Args:
        student_NC: Logits.
        teacher_NC: Logits.
        kind: Of `DIVERGENCES`.
        temperature: Both are divided by it.

    Returns:
        Shape [N], times temperature², so that its gradient does not depend on the temperature's size.
    """
    student_NC = torch.log_softmax(student_NC / temperature, dim=-1)
    teacher_NC = torch.log_softmax(teacher_NC / temperature, dim=-1)
    return DIVERGENCES[kind](student_NC, teacher_NC) * temperature**2


def bucketed(logits_NC: Tensor, kept_NK: Tensor, *, temperature: float) -> Tensor:
    """Log-probabilities of the kept classes, and of all others as one.

    Merging classes never makes two distributions more different, so a divergence of what this returns is a lower
    bound of the true one, and equal to it where all classes are kept.

    Args:
        logits_NC: Of all classes.
        kept_NK: Which are kept, int64.
        temperature: Logits are divided by it.

    Returns:
        Shape [N, K + 1], or [N, C] where all are kept.
    """
    scaled_NC = logits_NC if temperature == 1.0 else logits_NC / temperature  # logits are large: no copy for nothing
    total_N1 = torch.logsumexp(scaled_NC, dim=-1, keepdim=True)
    kept_NK_log = scaled_NC.gather(-1, kept_NK) - total_N1
    if kept_NK.shape[-1] == logits_NC.shape[-1]:
        return kept_NK_log
    rest_N1 = torch.logsumexp(scaled_NC.scatter(-1, kept_NK, -torch.inf), dim=-1, keepdim=True) - total_N1
    return torch.cat([kept_NK_log, rest_N1], dim=-1)


def hard_labels(student_NC: Tensor, labels_N: Tensor) -> Tensor:
    """Cross-entropy with the label of each item; 0 where it has none (-100)."""
    return nn.functional.cross_entropy(student_NC, labels_N, ignore_index=IGNORED, reduction="none")


def hidden_distances(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """Squared distance of each item's states, relative to the size of the teacher's.

    States of different layers, and those of the first token and the rest, differ in scale by orders of magnitude;
    divided by the teacher's own, a weight means the same everywhere.

    Args:
        student_NH: States, projected to the teacher's width.
        teacher_NH: States.
    """
    difference_N = (student_NH - teacher_NH).square().sum(dim=-1)
    return difference_N / teacher_NH.square().sum(dim=-1).clamp_min(torch.finfo(teacher_NH.dtype).tiny)


def similarity_distances(student_BH: Tensor, teacher_BH: Tensor) -> Tensor:
    """How far the cosines between each row and the others of its batch are from the teacher's, squared and averaged.

    The two may differ in width. A batch of one row says nothing: 0.

    Source: Tung & Mori: Similarity-Preserving Knowledge Distillation, 2019, section 3.1; cosines, as what an
    embedding is used for, where the paper normalises the rows of the Gram matrix.
    """
    student_BB, teacher_BB = _cosines(student_BH), _cosines(teacher_BH)
    others = max(len(student_BB) - 1, 1)  # a row's cosine with itself is 1 in both
    return (student_BB - teacher_BB).square().sum(dim=-1) / others


def cosine_distances(student_NH: Tensor, teacher_NH: Tensor) -> Tensor:
    """1 - the cosine of each item's two vectors."""
    return 1 - nn.functional.cosine_similarity(student_NH, teacher_NH, dim=-1)


def _cosines(vectors_BH: Tensor) -> Tensor:
    units_BH = nn.functional.normalize(vectors_BH, dim=-1)
    return units_BH @ units_BH.T


def _expected_difference(under_NC: Tensor, other_NC: Tensor) -> Tensor:
    """Σ p (log p - log q), both given as logarithms; classes of probability 0 add 0."""
    terms_NC = under_NC.exp() * (under_NC - other_NC)
    return torch.where(torch.isneginf(under_NC), torch.zeros_like(terms_NC), terms_NC).sum(dim=-1)
