"""How editors and type checkers see the public API; mypy reads this file (`make lint`), nothing runs it."""

from __future__ import annotations

from pathlib import Path
from typing import assert_type

import torch

import rszoo
from rszoo.models.torch_resnet_rs import ResNetRS, ResNetRSFeatures


def creating(framework_of_a_user: rszoo.Framework) -> None:
    classifier = rszoo.create("resnet-rs-50", pretrained=True)
    assert_type(classifier, ResNetRS)
    assert_type(rszoo.create(rszoo.ArchConfig((1, 1, 1, 1)), framework="torch", num_classes=3), ResNetRS)
    assert_type(rszoo.create(Path("my-model"), features_only=False, device="cpu"), ResNetRS)
    assert_type(classifier.config, rszoo.ArchConfig)
    assert_type(classifier.preprocessing, rszoo.Preprocessing)
    assert_type(classifier.forward_features(torch.zeros(1, 3, 64, 64)), torch.Tensor)
    backbone = rszoo.create("hf-hub:me/x", features_only=True, out_indices=[0, 4])
    assert_type(backbone, ResNetRSFeatures)
    assert_type(backbone.forward(torch.zeros(1, 3, 64, 64)), list[torch.Tensor])
    # Keras is not typed for mypy, whose own options skip it; at least it is not PyTorch's.
    rszoo.create("resnet-rs-50", framework="keras", features_only=True).predict_on_batch([])
    rszoo.create("resnet-rs-50", framework=framework_of_a_user)
    rszoo.create("resnet-rs-50", framework="jax")  # type: ignore[call-overload]
    rszoo.create("resnet-rs-50", classes=3)  # type: ignore[call-overload]
