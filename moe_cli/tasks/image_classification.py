"""Classification of images: batches, the loss, accuracy and calibration. B images, P patches, C channels, G classes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_cli.data.images import Images, LabelledImages, mean_and_std
from moe_cli.moe.routing import Routing
from moe_cli.tasks.base import BY_DOMAIN, EvalBatchResult, sum_by_domain
from moe_cli.tasks.examples import ExampleBatch, ExampleTask

# Bins of equal width of the model's confidence (Guo et al., arXiv:1706.04599, section 2).
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ImageBatch(ExampleBatch):
    """Images of mean 0 and standard deviation 1, and their classes."""

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, " B"]


class ImagesTask(ExampleTask):
    """Classification of images. The domains are the classes.

    Args:
        num_patches: P, the number of patches of an image; patches are routed, and `vocab_size` counts them.
    """

    dataset: Images

    def __init__(self, images: Images, num_patches: int, seed: int) -> None:
        super().__init__(images, seed, num_patches)
        self.vocab_size = num_patches
        self._mean, self._std = mean_and_std(images.train.pixels)

    def loss(self, model: nn.Module, batch: ImageBatch) -> tuple[Float[Tensor, ""], list[Routing]]:
        """Computes the mean cross-entropy in nats per image, and the routings of the model's sparse layers."""
        logits, routings = model(batch.images)
        return F.cross_entropy(logits.float(), batch.labels), routings

    def score(self, model: nn.Module, batch: ImageBatch) -> EvalBatchResult:
        """Returns the loss, and per confidence bin the number of images, of correct ones, and the summed confidence."""
        logits, routings = model(batch.images)
        confidence, predicted = logits.float().softmax(-1).max(-1)
        bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
        correct = (predicted == batch.labels).double()
        calibration = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=confidence.device)
        for row, values in zip(calibration, (torch.ones_like(correct), correct, confidence.double()), strict=True):
            row.index_add_(0, bins, values)
        losses = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        by_class = sum_by_domain(losses, batch.labels, len(self.domains))
        return EvalBatchResult(losses.mean(), routings, {"calibration": calibration, BY_DOMAIN: by_class})

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """Computes the metrics from sums over batches.

        accuracy: the fraction of correct images. calibration_error: the difference of confidence and accuracy, averaged
        over bins of confidence, weighted by their images (ECE, arXiv:1706.04599, eq. 3).
        """
        _, correct, confidence = sums["calibration"]
        return {
            "accuracy": float(correct.sum()) / num_targets,
            "calibration_error": float((correct - confidence).abs().sum()) / num_targets,
        }

    def routed_ids_and_domains(self, batch: ImageBatch) -> list[tuple[Int[Tensor, " T"], Int[Tensor, " T"]]]:
        """Returns the index of every patch, and the class of its image."""
        patches = self.vocab_size
        return [(torch.arange(patches).repeat(batch.num_examples), batch.labels.cpu().repeat_interleave(patches))]

    def id_texts(self, ids: Sequence[int]) -> dict[int, str]:
        """Returns row and column of a patch, from 1."""
        side = round(self.vocab_size**0.5)
        return {patch: f"{patch // side + 1}:{patch % side + 1}" for patch in ids}

    def _batch(self, images: LabelledImages, indices: NDArray[np.int64]) -> ImageBatch:
        pixels = (np.asarray(images.pixels[indices], np.float32) / 255 - self._mean) / self._std
        return ImageBatch(
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)),
            torch.from_numpy(np.asarray(images.labels[indices])),
        )
