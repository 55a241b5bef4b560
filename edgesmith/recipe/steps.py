"""What a recipe can do to a checkpoint before it is exported: merge, trim the vocabulary, prune, distill."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from edgesmith.recipe.strict import Positive, Strict

__all__ = [
    "DistillOptions",
    "DistillStep",
    "MergeOptions",
    "MergeStep",
    "PruneOptions",
    "PruneStep",
    "Step",
    "TrainOptions",
    "TrimVocabularyOptions",
    "TrimVocabularyStep",
]

Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Weight = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Importance = Literal["magnitude", "taylor", "activation", "hessian"]


class MergeOptions(Strict):
    """How adapters are merged."""

    dequantize: bool = False
    """Allow a 4- or 8-bit base: it is turned back into floats first, at a loss that training already had."""


class MergeStep(Strict):
    """Fold the adapters into the base."""

    merge: MergeOptions = MergeOptions()


class TrimVocabularyOptions(Strict):
    """Which tokens stay. Without a size, text of the corpus is tokenized as before."""

    corpus: str | None = None
    """Text file, or rows, whose tokens stay; data.train (or data.calibration) when left out."""
    max_tokens: Annotated[int | None, Field(ge=64)] = None
    """At most so many tokens: the rarer ones of the corpus are then written with shorter ones."""
    min_count: Annotated[int, Field(ge=1)] = 1
    """Tokens that the corpus has less often go too."""


class TrimVocabularyStep(Strict):
    """Keep the tokens that a corpus uses, and what they are built from."""

    trim_vocabulary: Annotated[TrimVocabularyOptions, Field(alias="trim-vocabulary")] = TrimVocabularyOptions()


class TrainOptions(Strict):
    """How weights are trained; shared by distillation and the recovery after pruning."""

    epochs: Positive | None = None
    """Times that the data are gone through; chosen by the kind of step when left out."""
    max_minutes: Positive | None = None
    """Stop after so long, with the best weights so far; the result then depends on the machine."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Rows (of a language model: windows) of one update, over all processes and accumulations."""
    micro_batch_size: Annotated[int | None, Field(ge=1)] = None
    """Rows computed at once; fewer need less memory. The whole batch when left out."""
    learning_rate: Positive | None = None
    """At its highest, after the warm-up; chosen by the kind of step when left out."""
    weight_decay: Weight = 0.01
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Share of the updates over which the learning rate rises."""
    max_length: Annotated[int | None, Field(ge=8)] = None
    """Tokens of a row (of a language model: of a window) in training; the model's limit, of windows 256, when left
    out."""
    patience: Annotated[int, Field(ge=1)] = 3
    """Evaluations without a better figure after which training ends."""
    validation: Share = 0.1
    """Share of the training rows that is held out to choose the best weights; never rows of data.eval."""
    gradient_checkpointing: bool = False
    """Compute activations twice to need less memory."""


class DistillOptions(Strict):
    """What the student is, and what it learns from the teacher (the checkpoint before this step)."""

    student: str | None = None
    """Checkpoint to train; made of the teacher's own layers when left out."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Layers of the teacher that the student starts from; all of them when left out."""
    layers: Literal["uniform", "influence"] | tuple[int, ...] = "uniform"
    """Which: spread evenly, those that change the hidden states most, or by their numbers from 0."""
    soft: Weight = 1.0
    """Weight of the teacher's softened predictions (of an embedding model: of the similarities between rows)."""
    hard: Weight = 0.0
    """Weight of the labels (of a language model: of the text's own next tokens)."""
    hidden: Weight = 0.0
    """Weight of the hidden states, through a learned projection where widths differ."""
    relation: Weight = 0.0
    """Weight of the relations between queries, keys and values in the last layer (MiniLM)."""
    temperature: Positive = 2.0
    """Softens the predictions of both."""
    divergence: Literal["forward-kl", "reverse-kl", "jsd"] = "forward-kl"
    """Of language models: how the predictions are compared."""
    on_policy: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Of language models: share of the batches that the student writes itself (GKD)."""
    sequence_level: bool = False
    """Of language models: train on the teacher's own continuations instead of the text."""
    cache_top_k: Annotated[int, Field(ge=0)] = 64
    """Of language models: predictions a position that are kept of the teacher, beside their sum; 0 runs it anew in
    every epoch."""
    train: TrainOptions = TrainOptions()


class DistillStep(Strict):
    """Train a smaller student to do as the teacher does."""

    distill: DistillOptions = DistillOptions()


class PruneOptions(Strict):
    """What goes: single weights, which stay as zeros, or whole structures, which really leave."""

    method: Literal["structured", "magnitude", "wanda", "sparsegpt"] = "structured"
    """The last three set single weights to zero."""
    sparsity: Share | None = None
    """Of single weights: the share of zeros in every pruned matrix."""
    pattern: Annotated[str | None, Field(pattern=r"^\d+:\d+$")] = None
    """Of single weights instead: `2:4` keeps two of every four in a row, which sparse tensor cores can use."""
    importance: Importance = "hessian"
    """Of structures: what decides which go."""
    num_layers: Annotated[int | None, Field(ge=1)] = None
    """Of structures: layers that stay, the most influential."""
    keep: dict[str, Share | Annotated[int, Field(ge=1)]] = {}  # noqa: RUF012
    """Of structures: dimension (`ffn`, `heads`, `hidden`, `channels`) → share or number that stays."""
    max_params: Share | Annotated[int, Field(ge=1)] | None = None
    """Of structures: a budget, absolute or as a share of what there is; the dimensions are chosen within it."""
    max_macs: Share | Annotated[int, Field(ge=1)] | None = None
    """The same in multiply-accumulates of one row."""
    max_latency: Share | None = None
    """The same as a share of the time measured here."""
    multiple_of: Annotated[int, Field(ge=1)] = 8
    """Widths are rounded to multiples of it, which hardware prefers."""
    recover: bool = True
    """Of structures: train afterwards to do as the model before did."""
    train: TrainOptions = TrainOptions()


class PruneStep(Strict):
    """Take out what matters least."""

    prune: PruneOptions = PruneOptions()


def _expand_step(value: Any) -> Any:
    return {value: {}} if isinstance(value, str) else value


Step = Annotated[MergeStep | TrimVocabularyStep | DistillStep | PruneStep, BeforeValidator(_expand_step)]
"""One step; `merge` alone means `merge: {}`."""
