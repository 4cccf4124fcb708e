"""Models, tasks, and data of recommendation select each other, and contradictions are refused."""

from typing import Any

import pytest

from moe_cli.config.compose import load_config
from moe_cli.config.data import SyntheticRatingsConfig
from moe_cli.config.model import MMoEConfig
from moe_cli.config.resolve import resolve
from moe_cli.config.routers import TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import RatingTask
from moe_cli.costs.model import estimate_cost
from moe_cli.errors import ConfigError


@pytest.mark.parametrize("word", ["model=mmoe", "task=ratings", "data=ratings"])
def test_model_task_and_data_bring_each_other_along(word: str) -> None:
    """Any one of them is enough; batches and optimizer are those of pairs unless something else is chosen."""
    config = load_config([word]).config
    assert ("mmoe", "ratings", "ratings") == (config.model.name, config.task.name, config.data.name)
    assert ("adamw", 256, 512) == (config.optim.name, config.train.batch_size, config.tokens_per_step)
    other = load_config([word, "optim=sgd", "train=smoke"]).config
    assert ("sgd", 8, 20) == (other.optim.name, other.train.batch_size, other.train.steps)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["router=hash"],
            "router=hash needs token ids, and a pair of user and item has none. Use router=topk",
        ),
        (
            ["router=soft"],
            "router=soft mixes the tokens of an example, and those of a pair are the same pair for each task. Use router=topk",
        ),
        (
            ["router.score=activation"],
            "router.score=activation scores tokens by the experts, which are the same for each task. Use router.score=linear",
        ),
        (
            ["model.context_length=4"],
            "model.context_length=4: a pair of user and item is routed 2 times, once for each task. Leave it out.",
        ),
        (["model.d_model=63"], "model.d_model=63 is odd: users and items have half of it each."),
        (["task=causal_lm"], "model=mmoe cannot do task=causal_lm. Use model=gpt or lstm, or task=ratings"),
        (
            ["data=movielens"],
            "data=movielens needs the folder of u.data, ratings.dat or ratings.csv. Add: data.path=FOLDER",
        ),
        (
            ["model.tie_embeddings=true"],
            "no setting 'model.tie_embeddings' with model=mmoe. It belongs to model=gpt, bert, lstm, t5, vit.",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], message: str) -> None:
    """With what is wrong and what to do."""
    with pytest.raises(ConfigError) as caught:
        load_config(["model=mmoe", *words])
    assert message == str(caught.value)


@pytest.mark.parametrize("changes", [{}, {"expert": 16, "k": 4}, {"router": TopKConfig(score="cosine")}])
def test_a_match_counts_the_gates_of_both_tasks(changes: dict[str, Any]) -> None:
    """match=active: as many active parameters as the dense twin, to 1 %."""
    config = RunConfig(
        model=MMoEConfig(d_model=32, d_ff=384), task=RatingTask(), data=SyntheticRatingsConfig(), **changes
    )
    dense = resolve(RunConfig(expert=1, model=config.model, task=config.task, data=config.data)).config
    active = [estimate_cost(each, 0).num_active_params for each in (resolve(config).config, dense)]
    assert active[1] == pytest.approx(active[0], rel=0.01)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["data=ratings"], 0.1),
        (["data=movielens", "data.path=here"], 0.5),
        (["data=movielens", "data.path=here", "task.l2_embedding=0.1"], 0.1),
        (["data=ratings", "task.l2_embedding=0"], 0.0),
    ],
)
def test_embeddings_are_held_down_as_suits_the_data(words: list[str], expected: float) -> None:
    """More for people's stars than for planted clusters, unless something is given, zero included."""
    config = load_config(words).config
    assert isinstance(config.task, RatingTask)
    assert expected == config.task.l2_embedding
