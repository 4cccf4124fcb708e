"""Ratings: what is planted, what MovieLens's files hold, folds, and what a model is held against."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_cli.config.data import MovieLensConfig, SyntheticRatingsConfig
from moe_cli.data.movielens import read_movielens
from moe_cli.data.ratings import ITEM_PRIOR, USER_PRIOR, Pairs, Ratings, auc, biases, load_ratings
from moe_cli.data.synthetic_ratings import CLUSTER_STD, MEAN, generate_interactions
from moe_cli.errors import ConfigError, DataError

PLANTED = SyntheticRatingsConfig(users=300, items=200, clusters=3, num_pairs=20_000, noise=0.4)
# Of users 1 to 6 on items 10 to 14, with a rating that tells who and what.
LINES = [(user, 10 + item, 1 + (user + 2 * item) % 5) for user in range(1, 7) for item in range(5)]
SHAPES = {
    "u.data": "".join(f"{user}\t{item}\t{rating}\t881250949\n" for user, item, rating in LINES),
    "ratings.dat": "".join(f"{user}::{item}::{rating}::978300760\n" for user, item, rating in LINES),
    "ratings.csv": "userId,movieId,rating,timestamp\n"
    + "".join(f"{user},{item},{rating}.0,1\n" for user, item, rating in LINES),
}


def movielens(tmp_path: Path, text: str = SHAPES["u.data"], name: str = "u.data", **changes: Any) -> MovieLensConfig:
    (tmp_path / name).write_text(text, encoding="latin-1")
    return MovieLensConfig(path=str(tmp_path), **changes)


def test_the_planted_rule_is_what_the_data_show() -> None:
    """About what is expected, ratings scatter by `noise` and clicks come at their chances; pairs occur once."""
    found = generate_interactions(PLANTED)
    assert found.expected is not None
    assert found.click_probability is not None
    assert 20_000 == len(set(zip(found.users.tolist(), found.items.tolist(), strict=True)))
    rest = found.ratings - found.expected
    assert (0, 0.4) == (pytest.approx(rest.mean(), abs=0.015), pytest.approx(rest.std(), rel=0.03))
    for low, high in itertools.pairwise([0, 0.1, 0.3, 0.6, 0.9, 1]):
        inside = (found.click_probability > low) & (found.click_probability <= high)
        if inside.sum() > 300:
            assert found.clicks[inside].mean() == pytest.approx(found.click_probability[inside].mean(), abs=0.05)


@pytest.mark.parametrize("task_correlation", [-1.0, 0.0, 0.8])
def test_relatedness_is_the_correlation_of_the_tasks(task_correlation: float) -> None:
    """task_correlation is the correlation of rating and click logit, scaled by the clusters' share of the rating."""
    data = SyntheticRatingsConfig(
        users=2000, items=2000, clusters=100, num_pairs=50_000, task_correlation=task_correlation
    )
    found = generate_interactions(data)
    assert found.expected is not None
    assert found.click_probability is not None
    logits = np.log(found.click_probability / (1 - found.click_probability))
    # The ratings also hold what users and items add, with deviations 0.3 and 0.4.
    share = CLUSTER_STD / np.sqrt(CLUSTER_STD**2 + 0.3**2 + 0.4**2)
    assert task_correlation * share == pytest.approx(np.corrcoef(found.expected, logits)[0, 1], abs=0.05)
    assert pytest.approx(found.ratings.mean(), abs=0.1) == MEAN


def test_a_fold_is_for_a_test(tmp_path: Path) -> None:
    """The fifth that is validation elsewhere; the three splits hold every pair once."""
    ratings = load_ratings(
        SyntheticRatingsConfig(users=300, items=200, num_pairs=20_000, fold=1, test_fold=3), tmp_path
    )
    tested = ratings.with_test_split()
    other = load_ratings(SyntheticRatingsConfig(users=300, items=200, num_pairs=20_000, fold=3), tmp_path)
    assert np.array_equal(other.val.rows, tested.val.rows)
    pairs = [tuple(row) for part in (ratings.train, ratings.val, tested.val) for row in part.rows.tolist()]
    assert 20_000 == len(set(pairs)) == len(pairs)
    assert [12_000, 4_000, 4_000] == [len(part) for part in (ratings.train, ratings.val, tested.val)]
    with pytest.raises(ConfigError, match=r"data.test_fold=1 equals data.fold"):
        SyntheticRatingsConfig(fold=1, test_fold=1)


def test_every_setting_of_the_planted_data_counts(tmp_path: Path) -> None:
    """Another seed, another noise, another fold: other data; the same again: the same, from the cache."""
    others = [
        PLANTED,
        SyntheticRatingsConfig(**{**vars(PLANTED), "seed": 1}),
        SyntheticRatingsConfig(**{**vars(PLANTED), "noise": 0.5}),
        SyntheticRatingsConfig(**{**vars(PLANTED), "fold": 1}),
    ]
    assert 4 == len({load_ratings(data, tmp_path).meta["sha256"] for data in others})
    again = load_ratings(PLANTED, tmp_path)
    assert again.meta == load_ratings(PLANTED, tmp_path / "elsewhere").meta
    assert 4 == len(list(tmp_path.glob("ratings-*")))
    assert "ratings, 20,000 pairs of 300 users and 200 items" == again.describe()


def test_folds_share_no_pair_and_hold_all(tmp_path: Path) -> None:
    """Five validation splits of a fifth each; what is held out is not trained on."""
    seen: list[tuple[int, int]] = []
    for fold in range(5):
        data = load_ratings(SyntheticRatingsConfig(**{**vars(PLANTED), "fold": fold}), tmp_path)
        own = set(map(tuple, data.val.rows.tolist()))
        assert 4000 == len(own)
        assert not own & set(map(tuple, data.train.rows.tolist()))
        seen += own
    assert 20_000 == len(set(seen))
    assert 300 <= data.val.rows[:, 1].min()
    assert 500 > data.val.rows[:, 1].max()


def test_the_best_possible_is_that_of_the_rule(tmp_path: Path) -> None:
    """best_rmse is the noise; no score has a better AUC than the chances; means are worse than biases, these than the rule."""
    rating_baselines = load_ratings(PLANTED, tmp_path).meta["references"]
    assert rating_baselines["best_rmse"] == pytest.approx(0.4, rel=0.05)
    assert rating_baselines["best_rmse"] < rating_baselines["biases_rmse"] < rating_baselines["mean_rmse"]
    found = generate_interactions(PLANTED)
    assert found.click_probability is not None
    noisy = np.log(found.click_probability) + np.random.default_rng(0).standard_normal(len(found.click_probability))
    assert auc(noisy, found.clicks) < auc(found.click_probability, found.clicks)
    assert rating_baselines["best_auc"] == pytest.approx(auc(found.click_probability, found.clicks), abs=0.02)


def test_auc_counts_pairs() -> None:
    """How often a click stands above none, one by one; equal scores are half."""
    draw = np.random.default_rng(0)
    scores, clicks = draw.integers(6, size=50).astype(float), draw.random(50) < 0.4
    above = [(a > b) + (a == b) / 2 for a in scores[clicks] for b in scores[~clicks]]
    assert auc(scores, clicks) == pytest.approx(sum(above) / len(above))


def test_biases_are_the_formula() -> None:
    """Mean, then an item's mean of what is left over its number plus 25, then a user's over its number plus 10."""
    rows = np.array([[0, 3], [0, 4], [1, 3], [2, 4]])
    train = Pairs(rows, np.array([5.0, 3.0, 4.0, 1.0]), np.zeros(4, bool))
    mean = 13 / 4
    item = {3: (5 + 4 - 2 * mean) / (2 + ITEM_PRIOR), 4: (3 + 1 - 2 * mean) / (2 + ITEM_PRIOR)}
    user = {0: (5 - mean - item[3] + 3 - mean - item[4]) / (2 + USER_PRIOR), 1: (4 - mean - item[3]) / (1 + USER_PRIOR)}
    asked = np.array([[0, 3], [1, 4], [7, 9]])  # the last has never been seen
    expected = [mean + user[0] + item[3], mean + user[1] + item[4], mean]
    assert expected == pytest.approx(biases(train, asked).tolist())


@pytest.mark.parametrize("name", SHAPES)
def test_every_shape_of_movielens_is_read(tmp_path: Path, name: str) -> None:
    """Whatever stands between the fields: the same users, items and ratings; a rating of `liked` is a click."""
    found = read_movielens(movielens(tmp_path, SHAPES[name], name))
    assert (6, 5) == (found.num_users, found.num_items)
    assert [user - 1 for user, _, _ in LINES] == found.users.tolist()
    assert [item - 10 for _, item, _ in LINES] == found.items.tolist()
    assert [rating for _, _, rating in LINES] == found.ratings.tolist()
    assert [rating >= 4 for _, _, rating in LINES] == found.clicks.tolist()
    assert "item 10" == found.item_names[0]
    strict = read_movielens(MovieLensConfig(path=str(tmp_path / name), click_threshold=5))
    assert [rating == 5 for _, _, rating in LINES] == strict.clicks.tolist()


@pytest.mark.parametrize(
    ("name", "titles"),
    [
        ("u.item", "10|Café Noir (1995)|01-Jan-1995||x\n11|B|x\n"),
        ("movies.dat", "10::Café Noir (1995)::Drama\n11::B::Drama\n"),
    ],
)
def test_titles_are_read_where_they_are(tmp_path: Path, name: str, titles: str) -> None:
    """In the old encoding that MovieLens has them in; an item without one goes by its number."""
    (tmp_path / name).write_text(titles, encoding="latin-1")
    assert ["Café Noir (1995)", "B", "item 12"] == read_movielens(movielens(tmp_path)).item_names[:3]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1\t10\t3\t1\n2\tx\n", "u.data, line 2: '2\\tx' is not user<tab>item<tab>rating."),
        ("1\t10\tgood\t1\n", "u.data, line 1: '1\\t10\\tgood\\t1' is not user<tab>item<tab>rating."),
        ("1\t10\tnan\t1\n", "u.data, line 1: '1\\t10\\tnan\\t1' is not user<tab>item<tab>rating."),
        ("\t10\t3\t1\n", "u.data, line 1: '10\\t3\\t1' is not user<tab>item<tab>rating."),
        ("1,10,3\n", "u.data, line 1: '1,10,3' is not user<tab>item<tab>rating."),
        ("", "u.data has no user, and at least 2 are needed. Give more ratings."),
        ("1\t10\t3\t1\n1\t11\t4\t1\n", "u.data has 1 user, and at least 2 are needed. Give more ratings."),
        ("1\t10\t3\t1\n2\t10\t4\t1\n", "u.data has 1 item, and at least 2 are needed. Give more ratings."),
    ],
)
def test_a_line_that_is_no_rating_is_named(tmp_path: Path, text: str, message: str) -> None:
    """With its file, its number and what should stand there."""
    with pytest.raises(DataError) as caught:
        read_movielens(movielens(tmp_path, text))
    assert f"{tmp_path}/{message}" == str(caught.value)


@pytest.mark.parametrize(
    ("text", "changes", "message"),
    [
        ("1\t10\t3\n2\t11\t4\n3\t10\t4\n", {}, " leaves 1 ratings for validation. Give more ratings."),
        (
            "".join(f"{i}\t{i % 3}\t3\n" for i in range(40)),
            {},
            ": all ratings are 3. Give ratings that differ.",
        ),
        (
            SHAPES["u.data"],
            {"click_threshold": 1},
            ": all of the pairs for training are clicks. Set data.click_threshold to another rating.",
        ),
        (
            SHAPES["u.data"],
            {"click_threshold": 6},
            ": none of the pairs for training is a click. Set data.click_threshold to another rating.",
        ),
    ],
)
def test_ratings_without_a_lesson_are_refused(tmp_path: Path, text: str, changes: dict[str, Any], message: str) -> None:
    """Too few, all equal, or all on one side of `liked`."""
    with pytest.raises(DataError) as caught:
        load_ratings(movielens(tmp_path, text, **changes), tmp_path / "cache")
    assert f"data.path={tmp_path}{message}" == str(caught.value)


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    """No path, no such folder, none of the files in it, a file of another name."""
    with pytest.raises(ConfigError, match=r"data=movielens needs the folder of u\.data"):
        MovieLensConfig()
    (tmp_path / "other.txt").write_text(SHAPES["u.data"])
    for path, message in [
        (tmp_path / "nowhere", "does not exist"),
        (tmp_path, "has no u.data, ratings.dat, ratings.csv. Unpack MovieLens there."),
        (tmp_path / "other.txt", "has an unknown format: its name is none of u.data, ratings.dat, ratings.csv"),
    ]:
        with pytest.raises(DataError, match=message):
            load_ratings(MovieLensConfig(path=str(path)), tmp_path / "cache")


def test_a_spreadsheets_csv_is_read(tmp_path: Path) -> None:
    """With the mark of its encoding and quotes around the names of columns."""
    text = SHAPES["ratings.csv"].replace("userId,movieId,rating,timestamp", '"userId","movieId","rating","timestamp"')
    data = movielens(tmp_path, SHAPES["ratings.csv"], "ratings.csv")
    plain = read_movielens(data)
    (tmp_path / "ratings.csv").write_text("\ufeff" + text, encoding="utf-8")
    assert plain.ratings.tolist() == read_movielens(data).ratings.tolist()


def test_a_changed_file_is_read_again(tmp_path: Path) -> None:
    """A changed file is read again instead of taken from the cache."""
    before = load_ratings(movielens(tmp_path), tmp_path / "cache")
    after: Ratings = load_ratings(movielens(tmp_path, SHAPES["u.data"] + "9\t10\t5\t1\n"), tmp_path / "cache")
    assert (30, 31) == (before.meta["num_documents"], after.meta["num_documents"])
    assert {"mean_rmse", "biases_rmse"} == set(after.meta["references"])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"fold": 5}, "data.fold=5 must be between 0 and 4."),
        ({"num_pairs": 101, "users": 10, "items": 10}, "data.num_pairs=101 must be between 10 and 100."),
        ({"clusters": 11, "users": 10, "items": 20}, "data.clusters=11 must be between 1 and 10."),
        ({"noise": 0.0}, "data.noise=0.0 must be between 0.001 and 1000."),
        ({"task_correlation": 1.5}, "data.task_correlation=1.5 must be between -1 and 1."),
        ({"users": 1}, "data.users=1 must be between 2 and 1048576."),
    ],
)
def test_sizes_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    """With the range."""
    with pytest.raises(ConfigError) as caught:
        SyntheticRatingsConfig(**changes)
    assert message == str(caught.value)
