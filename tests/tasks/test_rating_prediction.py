"""Batches of pairs, their loss, RMSE and AUC. B pairs."""

import math
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from moe_cli.config.tasks import RatingTask
from moe_cli.data.ratings import DOMAINS, Pairs, Ratings, auc
from moe_cli.tasks.rating_prediction import AUC_BINS, MAX_LOGIT, RatingsTask, score_counts
from moe_cli.training.evaluate import evaluate
from tests.tiny import TINY, finish, tiny_config

MEAN, STD = 3.0, 2.0


def make(train: int = 20, val: int = 9, seed: int = 0, config: RatingTask | None = None) -> RatingsTask:
    """Pairs of user 0 and an item that is the number of the pair; users have 2 rows, items 20."""
    meta = {"domains": DOMAINS, "vocab_size": 22, "users": 2, "mean": MEAN, "std": STD}
    ratings = Ratings(Path(), meta)
    for name, size in (("train", train), ("val", val)):
        number = np.arange(size)
        rows = np.stack((np.zeros(size, np.int64), 2 + number), 1)
        vars(ratings)[name] = Pairs(rows, number % 5 + 1.0, number % 3 == 0)
    vars(ratings)["item_names"] = [f"film {number}" for number in range(20)]
    return RatingsTask(ratings, seed, config or RatingTask())


def numbers(batch: Any) -> list[int]:
    return (batch.rows[:, 1] - 2).tolist()


class Fixed(nn.Module):
    """The same answers whatever is asked, by the item."""

    def __init__(self, answers: Tensor) -> None:
        super().__init__()
        self.answers = nn.Parameter(answers)

    def forward(self, rows: Tensor) -> tuple[Tensor, list[Any], Tensor]:
        number = rows[:, 1] - 2
        return self.answers[number], [], torch.stack((number, 2 * number + 1), dim=1).float()


def test_an_epoch_sees_every_pair_once() -> None:
    """Over two epochs, each in an order of its own that the seed decides, also where one ends within a batch."""
    task = make()
    seen = [numbers(task.train_batch(index, 8)) for index in range(5)]
    first, second = list(chain(*seen))[:20], list(chain(*seen))[20:]
    assert list(range(20)) == sorted(first) == sorted(second)
    assert first != second
    assert seen[2] == numbers(make().train_batch(2, 8))
    assert seen != [numbers(make(seed=1).train_batch(index, 8)) for index in range(5)]
    parts = [numbers(task.train_batch(2, 8, part, 4)) for part in range(4)]
    assert seen[2] == list(chain(*parts))
    assert [] == [each for each in seen if len(each) != 8]


def test_what_belongs_to_a_pair_goes_with_it() -> None:
    """Ratings of mean 0 and deviation 1, clicks as 0 and 1."""
    batch = make().train_batch(1, 8)
    assert [(number % 5 + 1 - MEAN) / STD for number in numbers(batch)] == pytest.approx(batch.ratings.tolist())
    assert [float(number % 3 == 0) for number in numbers(batch)] == batch.clicks.tolist()


def test_validation_sees_every_pair_or_some_spread_over_all() -> None:
    """In order; a limit counts each pair twice, once for each task."""
    task = make()
    assert list(range(9)) == list(chain(*map(numbers, task.val_batches(4))))
    assert [0, 4, 8] == list(chain(*map(numbers, task.val_batches(2, 6))))


def test_loss_and_measures_are_their_formulas() -> None:
    """Half the squared error of standardised ratings, and cross-entropy; RMSE in units of the ratings; AUC of the clicks."""
    answers = torch.randn(20, 2, generator=torch.Generator().manual_seed(0))
    result = evaluate(Fixed(answers), make(val=20), 7)
    rows = np.arange(20)
    guess, scores = answers.double().numpy().T
    ratings, clicks = rows % 5 + 1.0, rows % 3 == 0
    errors = guess - (ratings - MEAN) / STD
    chances = 1 / (1 + np.exp(-scores))
    click = -np.log(np.where(clicks, chances, 1 - chances))
    assert result.domain_losses == pytest.approx({"rating": (errors**2).mean() / 2, "click": click.mean()}, rel=1e-5)
    assert result.loss == pytest.approx((errors**2).mean() / 2 + click.mean(), rel=1e-5)
    assert result.measures == pytest.approx({"rmse": STD * math.sqrt((errors**2).mean()), "auc": auc(scores, clicks)})
    assert (20, None) == (result.num_tokens, result.num_bytes)


def test_l2_is_in_the_loss_that_is_trained_and_in_no_other() -> None:
    """The mean over the pairs of a batch, with a weight for embeddings and one for the rest; what is judged is without."""
    model = Fixed(torch.zeros(20, 2))
    plain, held_down = (
        make(config=RatingTask(l2=l2, l2_embedding=l2_embedding)) for l2, l2_embedding in ((0, 0), (0.5, 0.25))
    )
    batch = plain.train_batch(0, 8)
    added = held_down.loss(model, batch)[0] - plain.loss(model, batch)[0]
    assert (1.25 * sum(numbers(batch)) + 0.5 * 8) / 8 == pytest.approx(added.item(), rel=1e-5)
    assert plain.score(model, batch).loss == held_down.score(model, batch).loss


def test_equal_scores_count_half_and_order_alone_counts() -> None:
    """Any rising function of the scores has their AUC; one score for all is 0.5; one kind of pairs has none."""
    task, clicks = make(), torch.rand(400, generator=torch.Generator().manual_seed(1)) < 0.3

    def measured(scores: Tensor, clicks: Tensor = clicks) -> float | None:
        sums = {"squares": torch.zeros(()), "scores": score_counts(scores, clicks)}
        return task.metrics(sums, len(scores)).get("auc")

    scores = torch.randint(-9, 9, (400,), generator=torch.Generator().manual_seed(2)).float() / 2
    expected = auc(scores.double().numpy(), clicks.numpy())
    assert expected == pytest.approx(measured(scores))
    assert expected == pytest.approx(measured(scores.tanh() * 3))
    assert measured(torch.full((400,), 2.0)) == 0.5
    assert measured(scores, torch.zeros(400, dtype=torch.bool)) is None
    assert measured(torch.where(clicks, 1000.0, -torch.inf)) == 1.0
    assert score_counts(torch.full((400,), torch.inf), ~clicks & clicks)[0, -1] == 400


def test_scores_a_bin_apart_are_distinguished() -> None:
    """Neighbouring bins are as wide as they are said to be."""
    width = 2 * MAX_LOGIT / AUC_BINS
    counts = score_counts(torch.tensor([0.25 * width, 1.25 * width]), torch.tensor([False, True]))
    assert [AUC_BINS // 2, AUC_BINS // 2 + 1] == [int(row.argmax()) for row in counts]


def test_tasks_are_the_domains_of_what_is_routed() -> None:
    """Every pair is routed once for its rating and once for its click, under its item."""
    task = make()
    ids, domains = task.routed_ids_and_domains(next(task.val_batches(3)))[0]
    assert [2, 2, 3, 3, 4, 4] == ids.tolist()
    assert [0, 1, 0, 1, 0, 1] == domains.tolist()
    assert {2: "film 0", 5: "film 3"} == task.id_texts([2, 5, 0])


def test_a_run_records_which_task_uses_which_expert(tmp_path: Path) -> None:
    """In the last routing record, two choices per pair and task; the results hold RMSE, AUC and what they are held against."""
    run = finish(tiny_config(Path(), **TINY["mmoe"]), tmp_path)
    summary = run.summary() or {}
    assert {"val_rmse", "val_auc", "mean_rmse", "biases_rmse", "best_rmse", "best_auc"} <= set(summary)
    assert (80, None, None) == (summary["val_tokens"], summary["val_bpb"], summary["bigram_bpb"])
    last = list(run.routing())[-1]
    assert {"rating": 160, "click": 160} == {name: sum(row) for name, row in last["experts_by_domain"].items()}
    assert all(text.startswith("item ") for text in last["token_texts"].values())
