"""Classes of images: batches, the loss, and how far the answers can be trusted. B images, P patches, C channels, G classes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_cli.data.images import Images, LabelledImages, mean_and_std
from moe_cli.data.shuffle import ExampleOrder, evenly_spaced
from moe_cli.moe.routing import Routing
from moe_cli.tasks.base import BY_DOMAIN, EvalBatchResult, sum_by_domain

# Of equal width, by how sure the model is (Guo et al., arXiv:1706.04599, section 2).
CALIBRATION_BINS = 15


@dataclass(frozen=True)
class ImageBatch:
    """Images of mean 0 and standard deviation 1, and their classes."""

    images: Float[Tensor, "B C H W"]
    labels: Int[Tensor, " B"]
    num_bytes: None = None

    @property
    def num_examples(self) -> int:
        return len(self.labels)

    @property
    def num_targets(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "ImageBatch":
        return ImageBatch(self.images.to(device), self.labels.to(device))


class ImagesTask:
    """A set of images, in an order determined by the seed; each epoch sees every image once.

    Args:
        num_patches: P, the number of patches of an image; patches are routed, and `vocab_size` counts them.
    """

    def __init__(self, images: Images, num_patches: int, seed: int) -> None:
        self.corpus = images
        self.vocab_size = num_patches
        self._mean, self._std = mean_and_std(images.train.pixels)
        self._order = ExampleOrder(seed, len(images.train.labels))

    @property
    def domains(self) -> Sequence[str]:
        """Returns the classes."""
        return self.corpus.meta["domains"]  # type: ignore[no-any-return]

    @property
    def meta(self) -> Mapping[str, Any]:
        return self.corpus.meta

    def train_batch(self, index: int, size: int, part: int = 0, parts: int = 1) -> ImageBatch:
        """Returns the `index`-th batch of `size` images, a function of the seed and the index; or a part of it."""
        return self._batch(self.corpus.train, self._order.batch(index, size, part, parts))

    def val_batches(self, size: int, max_tokens: int | None = None) -> Iterator[ImageBatch]:
        """Yields the validation images in order; with `max_tokens`, images spread evenly that have about that many patches."""
        wanted = None if max_tokens is None else max_tokens // self.vocab_size
        chosen = evenly_spaced(len(self.corpus.val.labels), wanted)
        for first in range(0, len(chosen), size):
            yield self._batch(self.corpus.val, chosen[first : first + size])

    def loss(self, model: nn.Module, batch: ImageBatch) -> tuple[Float[Tensor, ""], list[Routing]]:
        """Computes the mean cross-entropy in nats per image, and the routings of the model's sparse layers."""
        logits, routings = model(batch.images)
        return F.cross_entropy(logits.float(), batch.labels), routings

    def score(self, model: nn.Module, batch: ImageBatch) -> EvalBatchResult:
        """Returns the loss, and per confidence bin the number of images, of correct ones, and the summed confidence."""
        logits, routings = model(batch.images)
        confidence, guess = logits.float().softmax(-1).max(-1)
        bins = (confidence * CALIBRATION_BINS).ceil().long().clamp(1, CALIBRATION_BINS) - 1
        right = (guess == batch.labels).double()
        calibration = torch.zeros(3, CALIBRATION_BINS, dtype=torch.float64, device=confidence.device)
        for row, values in zip(calibration, (torch.ones_like(right), right, confidence.double()), strict=True):
            row.index_add_(0, bins, values)
        losses = F.cross_entropy(logits.float(), batch.labels, reduction="none")
        by_class = sum_by_domain(losses, batch.labels, len(self.domains))
        return EvalBatchResult(losses.mean(), routings, {"calibration": calibration, BY_DOMAIN: by_class})

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """Computes the metrics from sums over batches.

        accuracy: the fraction of correct images. calibration_error: the difference of confidence and accuracy, averaged
        over bins of confidence, weighted by their images (ECE, arXiv:1706.04599, eq. 3).
        """
        _, right, confidence = sums["calibration"]
        return {
            "accuracy": float(right.sum()) / num_targets,
            "calibration_error": float((right - confidence).abs().sum()) / num_targets,
        }

    def routed_ids_and_domains(self, batch: ImageBatch) -> list[tuple[Int[Tensor, " T"], Int[Tensor, " T"]]]:
        """Returns the place of every patch, and the class of its image."""
        patches = self.vocab_size
        return [(torch.arange(patches).repeat(batch.num_examples), batch.labels.cpu().repeat_interleave(patches))]

    def id_texts(self, ids: Sequence[int]) -> dict[int, str]:
        """Returns row and column of a patch, from 1."""
        side = round(self.vocab_size**0.5)
        return {each: f"{each // side + 1}:{each % side + 1}" for each in ids}

    def pseudo_perplexity_task(self) -> None:
        """Returns None: this task has no pseudo-perplexity."""

    def _batch(self, images: LabelledImages, places: NDArray[np.int64]) -> ImageBatch:
        pixels = (np.asarray(images.pixels[places], np.float32) / 255 - self._mean) / self._std
        return ImageBatch(
            torch.from_numpy(np.ascontiguousarray(pixels.transpose(0, 3, 1, 2), np.float32)),
            torch.from_numpy(np.asarray(images.labels[places])),
        )
