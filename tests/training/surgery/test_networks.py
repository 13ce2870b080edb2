"""A few small networks through all that `surgery_matrix.py` does with many."""

from __future__ import annotations

import pytest
import torch

from training import surgery_matrix

NETWORKS = """
torchvision/squeezenet1_1 torchvision/mobilenet_v3_small torchvision/shufflenet_v2_x0_5
timm/test_vit timm/test_byobnet timm/levit_128s timm/repvit_m0_9
""".split()


@pytest.mark.parametrize("name", NETWORKS)
def test_a_network_is_retrained_frozen_in_part_saved_and_loaded(name, tmp_path):
    row = surgery_matrix.check(name, tmp_path)
    assert row.num_stages > 5


def test_the_matrix_tells_a_frozen_part_that_moves(tmp_path, monkeypatch):
    def freeze_too_little(model):
        model.requires_grad_(False)
        model.classifier[-1].requires_grad_(True)

    monkeypatch.setattr(surgery_matrix, "freeze_all_but_head", freeze_too_little)
    row = surgery_matrix.tried("torchvision/mobilenet_v3_small")
    assert "frozen, and changed" in row.problem


def test_the_matrix_tells_a_part_that_should_learn_and_does_not():
    model = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Linear(3, 3))
    with pytest.raises(AssertionError, match="trainable, and unchanged: 2"):
        surgery_matrix.check_step(model, torch.rand(2, 4), [*model[1].parameters()], set())
