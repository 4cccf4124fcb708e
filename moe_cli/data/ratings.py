"""Loads ratings and clicks of users on items: splits of pairs, with metadata.

N pairs; users have the rows from 0, items the rows after them.
"""

import dataclasses
import json
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import MovieLensConfig, RatingData
from moe_cli.data.cached import COMMON_META_TYPES
from moe_cli.data.dataset import ExampleDataset, Examples, cache_key, load_or_build, source, write_examples
from moe_cli.data.file_list import fingerprints
from moe_cli.data.movielens import find_ratings, read_movielens
from moe_cli.data.splits import SPLIT_LABELS
from moe_cli.data.synthetic_ratings import Interactions, generate_interactions
from moe_cli.errors import DataError

FORMAT = 2
_META = {**COMMON_META_TYPES, "users": int, "items": int, "mean": float, "std": float}
DOMAINS = ["rating", "click"]
# Shrinkage of biases: the number of ratings of zero bias that are added to those of an item or a user
# (Koren, TKDD 2010, section 2.1).
ITEM_PRIOR, USER_PRIOR = 25, 10


@dataclass(frozen=True)
class Pairs(Examples):
    """Rows of user and item [N, 2], ratings [N], and clicks [N]."""

    rows: NDArray[np.int64]
    ratings: NDArray[np.float64]
    clicks: NDArray[np.bool_]


class Ratings(ExampleDataset[Pairs]):
    """Splits of pairs of a user and an item."""

    label = "ratings"
    unit = "pairs"
    test_setting = "data.test_fold=1"
    examples = Pairs

    @cached_property
    def item_names(self) -> list[str]:
        return json.loads((self.folder / "items.json").read_text(encoding="utf-8"))  # type: ignore[no-any-return]

    def describe(self) -> str:
        """Returns one line: ratings, 100,000 pairs of 1,000 users and 500 items."""
        meta = self.meta
        return f"{meta['name']}, {meta['num_documents']:,} pairs of {meta['users']:,} users and {meta['items']:,} items"


def load_ratings(data: RatingData, cache: Path) -> Ratings:
    """Loads the ratings of a configuration, from the cache if their source is unchanged.

    Raises:
        DataError: a file is missing or invalid; or a split is unusable for training or evaluation.
    """
    files = fingerprints([find_ratings(data)]) if isinstance(data, MovieLensConfig) else []
    folder = cache / f"{data.name}-{cache_key(FORMAT, dataclasses.asdict(data), files)}"
    return Ratings(folder, load_or_build(folder, "ratings", _META, partial(_build, data, folder)))


def _build(data: RatingData, folder: Path) -> None:
    interactions = read_movielens(data) if isinstance(data, MovieLensConfig) else generate_interactions(data)
    all_pairs = Pairs(
        np.stack((interactions.users, interactions.num_users + interactions.items), 1),
        interactions.ratings,
        interactions.clicks,
    )
    held_out = held_out_fold(len(all_pairs), data.fold, data.num_folds)
    tested = np.zeros_like(held_out)
    if data.test_fold is not None:
        tested = held_out_fold(len(all_pairs), data.test_fold, data.num_folds)
    splits = {
        "train": all_pairs.select(~held_out & ~tested),
        "val": all_pairs.select(held_out),
        "test": all_pairs.select(tested),
    }
    train, val = splits["train"], splits["val"]
    for name, part in splits.items():
        if name != "test" or len(part):
            _check_split(part, name, source(data))
    meta = {
        "name": data.name,
        "source": source(data),
        "vocab_size": interactions.num_users + interactions.num_items,
        "domains": DOMAINS,
        "users": interactions.num_users,
        "items": interactions.num_items,
        "mean": float(train.ratings.mean()),
        "std": float(train.ratings.std()),
        "references": rating_baselines(train, val, interactions, held_out),
    }
    write_examples(Ratings, folder, splits, meta, items=json.dumps(interactions.item_names))


def held_out_fold(number: int, fold: int, num_folds: int) -> NDArray[np.bool_]:
    """Returns a mask of the pairs that a fold holds out. Folds are random, always the same, and disjoint."""
    held_out = np.zeros(number, bool)
    held_out[np.random.default_rng(0).permutation(number)[fold::num_folds]] = True
    return held_out


def _check_split(pairs: Pairs, split: str, where: str) -> None:
    """Raises DataError if a split is unusable for training or evaluation."""
    if len(pairs) < 2:
        raise DataError(f"{where} leaves {len(pairs)} ratings for {SPLIT_LABELS[split]}. Give more ratings.")
    if split == "train" and pairs.ratings.std() == 0:
        raise DataError(f"{where}: all ratings are {pairs.ratings[0]:g}. Give ratings that differ.")
    if pairs.clicks.all() or not pairs.clicks.any():
        label = SPLIT_LABELS[split]
        all_clicks, no_click = f"all of the pairs for {label} are clicks", f"none of the pairs for {label} is a click"
        found = all_clicks if pairs.clicks.all() else no_click
        raise DataError(f"{where}: {found}. Set data.click_threshold to another rating.")


def rating_baselines(
    train: Pairs, val: Pairs, interactions: Interactions, held_out: NDArray[np.bool_]
) -> dict[str, float]:
    """Computes the baselines of a model on the validation pairs.

    mean_rmse is the error of the mean rating. biases_rmse adds the biases of the user and the item (`biases`).
    best_rmse and best_auc are those of the rule that generated the data, where it is known. A model can beat them only
    by chance.
    """
    known = {
        "mean_rmse": rmse(val.ratings - train.ratings.mean()),
        "biases_rmse": rmse(val.ratings - biases(train, val.rows)),
    }
    if interactions.expected is not None and interactions.click_probability is not None:
        known["best_rmse"] = rmse(val.ratings - interactions.expected[held_out])
        known["best_auc"] = auc(interactions.click_probability[held_out], val.clicks)
    return known


def rmse(errors: NDArray[np.float64]) -> float:
    """Returns the root of the mean square."""
    return float(np.sqrt(np.mean(errors**2)))


def biases(train: Pairs, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Predicts ratings by mean + item bias + user bias, both shrunk to 0 (Koren, TKDD 2010, section 2.1)."""
    mean = train.ratings.mean()
    rest, guess = train.ratings - mean, np.full(len(rows), mean)
    for column, prior in ((1, ITEM_PRIOR), (0, USER_PRIOR)):
        size = 1 + max(train.rows[:, column].max(), rows[:, column].max())
        bias = np.bincount(train.rows[:, column], rest, size) / (np.bincount(train.rows[:, column], None, size) + prior)
        rest, guess = rest - bias[train.rows[:, column]], guess + bias[rows[:, column]]
    return guess


def auc(scores: NDArray[np.float64], clicks: NDArray[np.bool_]) -> float:
    """Computes the probability that a pair with a click has a higher score than one without; ties count half."""
    _, index, number = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(number) - (number - 1) / 2)[index]
    positives = int(clicks.sum())
    above = ranks[clicks].sum() - positives * (positives + 1) / 2
    return float(above / (positives * (len(clicks) - positives)))
