"""Generates ratings and clicks by a known rule, so that the best possible error is known.

N pairs, U users, I items, C clusters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moe_cli.config.data import SyntheticRatingsConfig

# Standard deviations of the effects of a user, an item and a pair of clusters on a rating, and of a pair of clusters on
# the logit of a click. MEAN and CLICK_MEAN are the means.
USER_STD, ITEM_STD, CLUSTER_STD = 0.3, 0.4, 0.7
MEAN, CLICK_MEAN, CLICK_STD = 3.5, -0.5, 2.0


@dataclass(frozen=True)
class Interactions:
    """User-item interactions with ratings and clicks.

    Attributes:
        users, items: indices from 0, each in its own range; `item_names[i]` is the name of item i.
        expected, click_probability: the mean of the rating and the probability of the click under the rule that
            generated the data; None means that the rule is unknown.
    """

    users: NDArray[np.int64]
    items: NDArray[np.int64]
    ratings: NDArray[np.float64]
    clicks: NDArray[np.bool_]
    num_users: int
    num_items: int
    item_names: list[str]
    expected: NDArray[np.float64] | None = None
    click_probability: NDArray[np.float64] | None = None


def generate_interactions(data: SyntheticRatingsConfig) -> Interactions:
    """Generates ratings and clicks of users and items with hidden clusters.

    A and B are tables of C x C standard normal numbers. Their entries are correlated by `task_correlation`:

    - rating = MEAN + user + item + CLUSTER_STD A[cluster of user, cluster of item] + `noise` N(0, 1)
    - click with probability sigmoid(CLICK_MEAN + CLICK_STD B[cluster of user, cluster of item])
    """
    draw = np.random.default_rng(data.seed)
    pairs = draw.choice(data.users * data.items, data.num_pairs, replace=False)
    users, items = np.divmod(pairs, data.items)
    user_cluster, item_cluster = (
        draw.integers(data.clusters, size=data.users),
        draw.integers(data.clusters, size=data.items),
    )
    table, other = draw.standard_normal((2, data.clusters, data.clusters))
    clicked = data.task_correlation * table + np.sqrt(1 - data.task_correlation**2) * other
    by_user, by_item = USER_STD * draw.standard_normal(data.users), ITEM_STD * draw.standard_normal(data.items)
    cluster_pair = user_cluster[users], item_cluster[items]
    expected = MEAN + by_user[users] + by_item[items] + CLUSTER_STD * table[cluster_pair]
    click_probability = 1 / (1 + np.exp(-(CLICK_MEAN + CLICK_STD * clicked[cluster_pair])))
    return Interactions(
        users,
        items,
        expected + data.noise * draw.standard_normal(data.num_pairs),
        draw.random(data.num_pairs) < click_probability,
        data.users,
        data.items,
        [f"item {number}" for number in range(data.items)],
        expected,
        click_probability,
    )
