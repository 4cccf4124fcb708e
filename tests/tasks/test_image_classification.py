"""Classifying images: order, loss, calibration, and a vision transformer that learns. B images, P patches, G classes."""

import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from moe_cli.data.images import Images, LabelledImages
from moe_cli.models.registry import make_model
from moe_cli.models.vit import ViT
from moe_cli.tasks.image_classification import CALIBRATION_BINS, ImagesTask
from moe_cli.training.evaluate import evaluate
from tests.tiny import TINY, finish, randomise, tiny_config


def make(train: int = 20, val: int = 9, seed: int = 0) -> ImagesTask:
    """Images whose first pixel is their number."""
    images = Images(Path(), {"domains": ["a", "b", "c"], "vocab_size": 3})
    for name, size in (("train", train), ("val", val)):
        pixels = np.zeros((size, 4, 4, 1), np.uint8)
        pixels[:, 0, 0, 0] = np.arange(size)
        vars(images)[name] = LabelledImages(pixels, np.arange(size) % 3)
    return ImagesTask(images, 4, seed)


def numbers(task: ImagesTask, batch: Any) -> list[int]:
    return ((batch.images[:, 0, 0, 0] * task._std + task._mean) * 255).round().int().tolist()


class Fixed(nn.Module):
    """The same logits for every image."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.logits = nn.Parameter(logits)

    def forward(self, images: Tensor) -> tuple[Tensor, list[Any]]:
        return self.logits[: len(images)], []


def test_an_epoch_sees_every_image_once() -> None:
    """Over two epochs, each in an order of its own, that the seed decides; labels go with their images."""
    task = make()
    batches = [task.train_batch(index, 5) for index in range(8)]
    seen = [numbers(task, batch) for batch in batches]
    first, second = list(chain(*seen[:4])), list(chain(*seen[4:]))
    assert list(range(20)) == sorted(first) == sorted(second)
    assert first != second
    assert [number % 3 for number in first + second] == torch.cat([batch.labels for batch in batches]).tolist()
    assert seen[5] == numbers(task, make().train_batch(5, 5))
    assert seen != [numbers(task, make(seed=1).train_batch(index, 5)) for index in range(8)]
    parts = [numbers(task, task.train_batch(2, 6, part, 3)) for part in range(3)]
    assert numbers(task, task.train_batch(2, 6)) == list(chain(*parts))


def test_validation_sees_every_image_or_some_spread_over_all() -> None:
    """In order; with a limit, the first and the last among them."""
    task = make()
    assert list(range(9)) == list(chain(*(numbers(task, batch) for batch in task.val_batches(4))))
    assert [0, 4, 8] == list(chain(*(numbers(task, batch) for batch in task.val_batches(2, 12))))


def test_calibration_is_the_formula() -> None:
    """Over bins of confidence, the gap between accuracy and confidence, weighted by their images."""
    task = make(val=9)
    logits = torch.randn(9, 3, generator=torch.Generator().manual_seed(0)) * 2
    result = evaluate(Fixed(logits), task, 9)
    probs = logits.softmax(-1)
    sure, guess = probs.max(-1)
    right = guess == torch.arange(9) % 3
    expected = 0.0
    for low in np.arange(CALIBRATION_BINS) / CALIBRATION_BINS:
        inside = (sure > low) & (sure <= low + 1 / CALIBRATION_BINS)
        if inside.any():
            gap = abs(right[inside].double().mean() - sure[inside].double().mean()).item()
            expected += gap * inside.sum().item() / 9
    assert expected == pytest.approx(result.measures["calibration_error"], abs=1e-6)
    assert right.double().mean().item() == pytest.approx(result.measures["accuracy"])
    nats = -probs[torch.arange(9), torch.arange(9) % 3].log().mean().item()
    assert (nats, 9) == (pytest.approx(result.loss, rel=1e-5), result.num_tokens)


def model_of(**changes: Any) -> ViT:
    return randomise(make_model(tiny_config(Path(), **{**TINY["vit"], **changes}), 10)).double().eval()  # type: ignore[return-value]


def test_patches_are_squares_of_the_image() -> None:
    """Row by row, each with its own pixels and channels."""
    model = model_of()
    images = torch.arange(2 * 3 * 8 * 8).view(2, 3, 8, 8).double()
    patches = model.patchify(images)
    assert (2, 16, 12) == tuple(patches.shape)
    for row in range(4):
        for column in range(4):
            square = images[:, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2]
            assert torch.equal(square.permute(0, 2, 3, 1).flatten(1), patches[:, 4 * row + column])


def test_every_patch_is_seen_and_their_places_are_known() -> None:
    """A change of any patch moves the answer; two patches changed about move it too, through learned positions."""
    model = model_of()
    images = torch.randn(1, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    before, routings = model(images)
    assert [16, 16] == [routing.num_tokens for routing in routings]
    for place in range(8):
        changed = images.clone()
        changed[..., place, place] += 1
        assert (model(changed)[0] - before).abs().max() > 1e-9
    turned = images.flip(-1)
    assert (model(turned)[0] - before).abs().max() > 1e-6


def test_a_new_model_guesses_uniformly() -> None:
    """The first loss is the logarithm of the number of classes."""
    model = make_model(tiny_config(Path(), **TINY["vit"]), 10)
    logits = model(torch.randn(3, 1, 8, 8))[0]
    assert math.log(10) == pytest.approx(-logits.log_softmax(-1).mean().item(), rel=1e-6)


@pytest.mark.usefixtures("unchecked_shapes")
@pytest.mark.parametrize("sparse", [{}, {"expert": 1, "k": 1}])
def test_one_batch_can_be_learned_by_heart(sparse: dict[str, Any]) -> None:
    """Some dozen steps on images of noise with classes by chance leave next to no loss."""
    torch.manual_seed(0)
    model = make_model(tiny_config(Path(), **{**TINY["vit"], **sparse}), 10)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
    images, labels = torch.randn(8, 1, 8, 8), torch.randint(10, (8,))
    for _ in range(80):
        loss = F.cross_entropy(model(images)[0], labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss < 0.05


@pytest.mark.parametrize("sparse", [{}, {"expert": 1, "k": 1}])
def test_digits_are_learned(tmp_path: Path, sparse: dict[str, Any]) -> None:
    """A few dozen steps of a tiny model tell twice as many digits as the commonest class alone would."""
    pytest.importorskip("sklearn")
    config = tiny_config(Path(), **{**TINY["vit"], **sparse}, train={"steps": 60, "batch_size": 16, "log_every": 20})
    summary = finish(config, tmp_path).summary() or {}
    assert summary["val_accuracy"] > max(0.25, 2 * summary["majority_accuracy"])
    assert summary["majority_accuracy"] > 0.05
    assert summary["val_bpb"] is None
    assert 359 == summary["val_tokens"]


def test_classes_are_the_domains_of_patches() -> None:
    """Every patch has its place as id and its image's class as domain; places are written as row and column."""
    task = make()
    batch = next(task.val_batches(2))
    ids, domains = task.routed_ids_and_domains(batch)[0]
    assert [0, 1, 2, 3] * 2 == ids.tolist()
    assert [0] * 4 + [1] * 4 == domains.tolist()
    assert {0: "1:1", 3: "2:2"} == task.id_texts([0, 3])
