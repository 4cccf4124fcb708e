"""Prediction of ratings and clicks: batches, the loss, RMSE and AUC. B pairs, G tasks, H bins."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from numpy.typing import NDArray
from torch import Tensor, nn

from moe_cli.config.tasks import RatingTask
from moe_cli.data.ratings import Pairs, Ratings
from moe_cli.moe.routing import Routing
from moe_cli.tasks.base import BY_DOMAIN, EvalBatchResult, sum_by_domain
from moe_cli.tasks.examples import ExampleBatch, ExampleTask

# Logits of clicks are counted in AUC_BINS bins of equal width from -MAX_LOGIT to MAX_LOGIT. Those of a bin are ties.
AUC_BINS, MAX_LOGIT = 2**14, 16.0


@dataclass(frozen=True)
class PairBatch(ExampleBatch):
    """Rows of user and item, ratings of mean 0 and standard deviation 1, and clicks, 0 or 1."""

    rows: Int[Tensor, "B 2"]
    ratings: Float[Tensor, " B"]
    clicks: Float[Tensor, " B"]


class RatingsTask(ExampleTask):
    """Prediction of ratings and clicks. The domains are the two tasks.

    Args:
        config: the weights of the squares of a pair's embeddings, biases and factors in the training loss.
    """

    dataset: Ratings

    def __init__(self, ratings: Ratings, seed: int, config: RatingTask) -> None:
        super().__init__(ratings, seed, len(ratings.meta["domains"]))
        self.config = config
        self.vocab_size: int = ratings.meta["vocab_size"]
        self._mean, self._std = ratings.meta["mean"], ratings.meta["std"]

    def loss(self, model: nn.Module, batch: PairBatch) -> tuple[Float[Tensor, ""], list[Routing]]:
        """Returns the loss in nats per pair, and the routings of the model's sparse layers.

        The loss is the sum of both tasks' means (see `_losses`) and the weighted squares of the embeddings that were
        looked up, once per lookup (Koren, Bell and Volinsky, 2009, eq. 5).
        """
        outputs, routings, squares = model(batch.rows)
        embeddings, biases_and_factors = squares.float().mean(0)
        assert self.config.l2_embedding is not None
        l2_penalty = self.config.l2_embedding * embeddings + self.config.l2 * biases_and_factors
        return self._losses(outputs, batch).sum(1).mean() + l2_penalty, routings

    def score(self, model: nn.Module, batch: PairBatch) -> EvalBatchResult:
        """Returns the loss without the weighted squares, and the sums of the metrics.

        These are the sum of squared errors in units of the ratings, and the number of pairs with each score, by click.
        """
        outputs, routings, _ = model(batch.rows)
        losses = self._losses(outputs, batch)
        squares = (self._std * (outputs[:, 0].double() - batch.ratings)).square().sum()
        tasks = torch.arange(losses.shape[1]).repeat(len(losses))
        sums = {
            "squares": squares,
            "scores": score_counts(outputs[:, 1].float(), batch.clicks > 0.5),
            BY_DOMAIN: sum_by_domain(losses.flatten(), tasks, losses.shape[1]),
        }
        return EvalBatchResult(losses.sum(1).mean(), routings, sums)

    def metrics(self, sums: Mapping[str, Tensor], num_targets: int) -> dict[str, float]:
        """Computes the metrics from sums over batches.

        rmse: root of the mean squared error, in units of the ratings. auc: the probability that a pair with a click has
        a higher score than one without, ties counting half; absent if all pairs are of one kind.
        """
        metrics = {"rmse": (float(sums["squares"]) / num_targets) ** 0.5}
        without, with_click = sums["scores"]
        both = float(without.sum() * with_click.sum())
        if both:
            metrics["auc"] = float((with_click * (without.cumsum(0) - without / 2)).sum()) / both
        return metrics

    def routed_ids_and_domains(self, batch: PairBatch) -> list[tuple[Int[Tensor, " T"], Int[Tensor, " T"]]]:
        """Returns the item's row and the task, for every pair and task."""
        tasks = len(self.domains)
        return [(batch.rows[:, 1].cpu().repeat_interleave(tasks), torch.arange(tasks).repeat(batch.num_examples))]

    def id_texts(self, ids: Sequence[int]) -> dict[int, str]:
        """Returns the name of each item by its row."""
        first = self.dataset.meta["users"]
        return {row: self.dataset.item_names[row - first] for row in ids if row >= first}

    def _losses(self, outputs: Float[Tensor, "B G"], batch: PairBatch) -> Float[Tensor, "B G"]:
        """Computes the losses of both tasks.

        That of a rating is half the squared error in standard deviations of the ratings. It equals the loss in nats of
        a Gaussian with that deviation, except for a constant. That of a click is the cross-entropy.
        """
        outputs = outputs.float()
        rating = 0.5 * (outputs[:, 0] - batch.ratings).square()
        click = F.binary_cross_entropy_with_logits(outputs[:, 1], batch.clicks, reduction="none")
        return torch.stack((rating, click), dim=1)

    def _batch(self, pairs: Pairs, indices: NDArray[np.int64]) -> PairBatch:
        selected = pairs.select(indices)
        ratings = ((selected.ratings - self._mean) / self._std).astype(np.float32)
        return PairBatch(
            torch.from_numpy(selected.rows),
            torch.from_numpy(ratings),
            torch.from_numpy(selected.clicks.astype(np.float32)),
        )


def score_counts(scores: Float[Tensor, " B"], clicks: Bool[Tensor, " B"]) -> Float[Tensor, "2 H"]:
    """Counts the scores in each bin, for pairs without a click and for pairs with one."""
    position = (scores + MAX_LOGIT) * (AUC_BINS / (2 * MAX_LOGIT))
    bins = position.clamp(0, AUC_BINS - 1).long() + AUC_BINS * clicks
    return torch.bincount(bins, minlength=2 * AUC_BINS).view(2, AUC_BINS).double()
