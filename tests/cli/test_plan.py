"""moe plan: prices without building."""

import json

import pytest

from moe_cli.config.compose import load_config
from moe_cli.costs.model import estimate_cost, training_steps
from moe_cli.formatting import count, format_flops
from tests.cli.conftest import Moe


def test_the_numbers_are_those_of_the_configuration(moe: Moe) -> None:
    """Counts as `estimate_cost` gives them, time as work over rate, and a way for each division that is possible."""
    words = ("expert=8", "k=2", "train.steps=100")
    content = json.loads(moe("plan", *words, "--gpus", 4, "--gpu", "a100", "--mfu", 0.5, "--json").stdout)
    config = load_config(words).config
    costs, steps = estimate_cost(config, 256), training_steps(config, 256)
    assert (costs.num_params, costs.num_active_params) == (content["params"], content["active_params"])
    work = 100 * (config.tokens_per_step * costs.model_flops_per_token + costs.optimizer_flops_per_step)
    assert (100, work) == (steps, content["training_flops"])
    assert work == content["model_flops"] + content["optimizer_flops"]
    assert content["seconds"] == pytest.approx(work / (4 * 312e12 * 0.5))
    ways = [(share["shard"], share["members"]) for share in content["shares"]]
    assert [("dp", 1), ("fsdp", 1), ("dp", 4), ("fsdp", 4)] == ways
    assert all(share["fits"] for share in content["shares"])


@pytest.mark.parametrize("words", [("expert=16", "k=1"), ("expert=1",), ("expert=16", "k=1", "optim=adamw")])
def test_a_budget_of_flops_pays_for_model_and_optimizer(moe: Moe, words: tuple[str, ...]) -> None:
    """It is spent to half a step, and both parts are printed."""
    words = (*words, "train.flops=1e12")
    content = json.loads(moe("plan", *words, "--json").stdout)
    assert content["training_flops"] == pytest.approx(1e12, abs=content["training_flops"] / content["steps"] / 2)
    parts = f"{count(content['model_flops'])} model + {count(content['optimizer_flops'])} optimizer"
    assert f"{format_flops(content['training_flops'])}: {parts}" in moe("plan", *words).output


def test_a_giant_is_priced_at_once(moe: Moe) -> None:
    """Nothing of its size is made, what does not fit is said, and no line is cut at 80 columns."""
    result = moe("plan", "experiment=published/deepseek_v3", "--gpus", 8)
    assert 0 == result.exit_code
    for text in ("671G total", "37.6G active (5.6 %)", "14.8T tokens", "dp ep 8", "no"):
        assert text in result.output
    assert "\u2026" not in result.output


def test_a_task_may_have_tokens_of_its_own(moe: Moe) -> None:
    """The mask of masked_lm, the sentinels and the start of span_corruption have rows of the embedding."""
    for words, size in ((("model=bert",), 257), (("model=t5",), 357), (("model=gpt",), 256)):
        assert size == json.loads(moe("plan", *words, "--json").stdout)["vocab_size"]


def test_a_budget_of_time_has_no_time_to_tell(moe: Moe) -> None:
    """How much is computed is not known then; the rest is."""
    result = moe("plan", "train.minutes=5")
    assert 0 == result.exit_code
    assert "about" not in result.output
    assert json.loads(moe("plan", "train.minutes=5", "--json").stdout)["seconds"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--gpus", 0], "--gpus=0 must be at least 1."),
        (["--mfu", 1.5], "--mfu=1.5 must be "),
        (["--gpu", "h10"], "--gpu=h10: Did you mean 'h100'? Available: h100, h200"),
        (["exprt=8"], "no setting 'exprt'"),
    ],
)
def test_wrong_request(moe: Moe, words: list[object], message: str) -> None:
    """One line, exit code 2."""
    result = moe("plan", *words)
    assert 2 == result.exit_code
    assert message in result.output
