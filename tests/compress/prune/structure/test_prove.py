"""Which tensors belong to a dimension is found on real architectures, and what cannot be proven is refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from compress.prune.structure.probe import probe_dimension
from compress.prune.structure.prove import prove_dimension
from edgesmith.errors import UnsupportedError

from .models import batches_for, build

# Architecture and dimension → units of each group; of layers, one group each.
_FOUND = {
    ("bert", "ffn"): [64] * 3,
    ("bert", "hidden"): [4, 4, 4, 32, 32],
    ("bert-states", "hidden"): [4, 4, 4, 32],
    ("roberta", "hidden"): [4, 4, 4, 32, 32],
    ("mpnet", "hidden"): [4, 32],
    ("albert", "ffn"): [64],
    ("distilbert", "hidden"): [4, 4, 4, 32, 32],
    ("gpt2", "ffn"): [128] * 3,
    ("gpt2", "hidden"): [4, 4, 4, 32],
    ("llama", "ffn"): [64] * 3,
    ("llama", "heads"): [2] * 3,
    ("llama", "hidden"): [32],
    ("qwen2", "heads"): [2] * 3,
    ("qwen3", "heads"): [2] * 3,
    ("gemma", "heads"): [4] * 3,
    ("phi3", "ffn"): [64] * 3,
    ("phi3", "heads"): [2] * 3,
    ("vit", "heads"): [4] * 3,
    ("vit", "hidden"): [32],
}


@pytest.mark.parametrize(("name", "dimension"), _FOUND)
def test_groups_are_found_and_proven(name: str, dimension: str) -> None:
    model = build(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    [probed] = probe_dimension(model, dimension)
    proven = prove_dimension(model, probed, batches_for(name)[0])
    assert sorted(group.num_units for group in proven.groups) == sorted(_FOUND[name, dimension])
    placed = [(axis.site.tensor, axis.site.axis) for group in proven.groups for axis in group.axes]
    assert sorted(placed) == sorted((site.tensor, site.axis) for site in probed.sites)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_residual_and_inner_channels_of_a_resnet_are_told_apart() -> None:
    model = build("resnet")
    found = [prove_dimension(model, one, batches_for("resnet")[0]) for one in probe_dimension(model, "channels")]
    # The stem and the first stage are added up without a convolution between them.
    assert [list(one.settings) for one in found] == [["embedding_size", "hidden_sizes[0]"], ["hidden_sizes[1]"]]
    assert [len(one.groups) for one in found] == [3, 3]


def test_channels_inside_a_bottleneck_go_in_steps_of_its_reduction() -> None:
    found = probe_dimension(build("resnet-bottleneck"), "channels")
    assert [one.dimension.step for one in found] == [1, 4, 4]


@pytest.mark.parametrize(
    ("name", "dimension", "reason"),
    [
        ("bert", "heads", "no head_dim"),
        ("bert", "channels", "no field for channels"),
        ("mobilenet", "channels", "MobileNetV2.*no field for channels"),
        ("mobilenet", "ffn", "no field for ffn"),
    ],
)
def test_what_an_architecture_lacks_is_refused_by_name(name: str, dimension: str, reason: str) -> None:
    with pytest.raises(UnsupportedError, match=reason):
        probe_dimension(build(name), dimension)


class _Peeking(nn.Module):
    """Reads single neurons by their place, as no rule of permutation allows."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        states: torch.Tensor = self.inner(hidden_states)
        return states + torch.arange(states.shape[-1]) * 0.1 * states[..., :1]


def test_a_layer_that_knows_its_neurons_by_place_is_refused_by_name() -> None:
    model = build("bert")
    layer = model.bert.encoder.layer[1].intermediate
    [probed] = probe_dimension(model, "ffn")
    layer.intermediate_act_fn = _Peeking(nn.GELU())
    with pytest.raises(UnsupportedError, match=r"ffn .*layer\.1\.intermediate\.dense\.weight"):
        prove_dimension(model, probed, batches_for("bert")[0])
