from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from compress.distill.readout import Readout
from edgesmith.tasks.pooling import POOLINGS


@pytest.mark.parametrize("pooling", sorted(POOLINGS))
def test_pooling_is_that_of_the_task(pooling: str) -> None:
    states = torch.randn(3, 4, 8, generator=torch.Generator().manual_seed(0))
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0], [0, 0, 1, 1]])
    readout = Readout(items="vectors", input_names=("input_ids", "attention_mask"), pooling=pooling)
    found = readout.read(SimpleNamespace(last_hidden_state=states), {"attention_mask": mask})
    np.testing.assert_allclose(found, POOLINGS[pooling](states.numpy(), mask.numpy()), rtol=1e-6)


def test_tokens_of_padding_are_no_items() -> None:
    logits = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    readout = Readout(items="tokens", input_names=("input_ids", "attention_mask"))
    found = readout.read(SimpleNamespace(logits=logits), {"attention_mask": mask})
    assert found.tolist() == [[0, 1], [2, 3], [8, 9], [10, 11]]
