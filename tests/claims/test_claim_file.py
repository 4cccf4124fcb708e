"""Files of conf/claim: ours can be tried, and every wrong part of a file is refused with what is wrong."""

from pathlib import Path

import pytest

from moe_cli.claims.claim_file import load_claim
from moe_cli.claims.plan import plan_claim
from moe_cli.config.compose import Composer
from moe_cli.config.sweep_file import CLAIM, list_sweeps
from moe_cli.errors import ConfigError
from tests.config.test_compose import write

CLAIMS = list_sweeps(Composer(), CLAIM)
LARGE = ("workstation", "cluster")
HEAD = """# Experts help.
source: {title: A paper, arxiv: "2101.03961"}
published: {setting: a large model, figures: {loss: 2.0}}
"""
SWEEP = "grid: {expert: [2, 4]}\nset: {k: 1}\nseeds: 3\n"
ORDER = "{metric: val_loss, better: expert == 4, worse: expert == 2, noise: 0.5 %}"
CLAIM_TEXT = f"{HEAD}{SWEEP}predicate: {{order: {ORDER}}}\n"


@pytest.mark.parametrize("preset", ["laptop", *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)])
@pytest.mark.parametrize("name", CLAIMS)
def test_every_claim_can_be_tried(name: str, preset: str) -> None:
    """A claim is one sentence; its sweep has at least three seeds and every configuration that its predicate names."""
    plan = plan_claim([name, f"preset={preset}"])
    assert plan.claim.sentence.endswith(".")
    assert () == plan.sweep.left_out
    assert f"claim-{name}" == plan.sweep.name
    assert len(plan.seeds) >= 3
    assert plan.claim.differences
    if any(predicate.is_speedup_ratio for predicate in plan.claim.predicates):
        # Without dense runs on both sides a multiplier is at least 1, or unknown.
        budgets = {
            is_dense: {
                config.train.steps or config.train.tokens or 0
                for config in (point.config for point in plan.sweep.points)
                if config.dense == is_dense
            }
            for is_dense in (False, True)
        }
        (own,) = budgets[False]
        assert min(budgets[True]) < own < max(budgets[True])


def test_there_are_at_least_twelve_claims() -> None:
    """From at least eight sources."""
    claims = [load_claim(Composer(), name) for name in CLAIMS]
    assert len(claims) >= 12
    assert len({claim.source for claim in claims}) >= 8


def test_a_claim_takes_over_the_sweep_that_it_names(tmp_path: Path) -> None:
    """Its own parts change those of the sweep, and so do those of its presets; only what is compared is run."""
    sweep = "grid: {expert: [2, 4, 8]}\nset: {k: 1}\nbudget: {steps: 50}\npresets: {large: {set: {k: 2}}}\n"
    claim = (
        f"{HEAD}sweep: mine\nbudget: {{steps: 9}}\ngrid: {{expert: [2, 4]}}\nseeds: 4\npredicate: {{order: {ORDER}}}\n"
    )
    claim += "presets: {large: {seeds: 5}}\n"
    folder = write(tmp_path, sweep__mine=sweep, claim__mine=claim)
    plan = plan_claim(["mine"], config_dir=folder)
    assert {(2, 1, 9), (4, 1, 9)} == {(p.config.expert, p.config.k, p.config.train.steps) for p in plan.sweep.points}
    assert (0, 1, 2, 3) == plan.seeds
    large = plan_claim(["mine", "preset=large"], config_dir=folder)
    assert ("moe reproduce mine", "moe reproduce mine preset=large") == (plan.command, large.command)
    assert ({2}, 5) == ({point.config.k for point in large.sweep.points}, len(large.seeds))


def predicate(text: str) -> str:
    return f"{HEAD}{SWEEP}predicate: {text}\n"


WRONG = {
    SWEEP: "the part source is missing.",
    HEAD + SWEEP: "the part predicate is missing.",
    CLAIM_TEXT.removeprefix("# Experts help.\n"): "the first line must be a comment with the claim in one sentence.",
    CLAIM_TEXT.replace("seeds: 3", "seeds: 2"): "seeds: 2 are too few for intervals: at least 3.",
    CLAIM_TEXT.replace("2101.03961", "2101"): "source.arxiv: 2101 is no arXiv id.",
    CLAIM_TEXT.replace('arxiv: "2101.03961"', "url: ftp://a"): "source.url: ftp://a must begin with https://",
    CLAIM_TEXT.replace(', arxiv: "2101.03961"', ""): "source must hold a title, and an arxiv id or a url.",
    CLAIM_TEXT.replace("title:", "titel:"): "no part 'titel' in source. Did you mean 'title'?",
    CLAIM_TEXT.replace("setting: a large model, ", ""): "published must say in which setting",
    CLAIM_TEXT.replace("{loss: 2.0}", "[2]"): "published.figures must hold names with numbers",
    CLAIM_TEXT.replace("{loss: 2.0}", "{loss: true}"): "published.figures: loss must be a number or a text, not: true",
    CLAIM_TEXT + "differences: 3\n": "differences must be a list of texts.",
    CLAIM_TEXT + "sweep: none_such\n": "sweep: there is no conf/sweep/none_such.yaml.",
    CLAIM_TEXT + "search: {sampler: tpe}\n": "no part 'search' in a claim.",
    predicate("3"): "predicate must hold all, or one of: order, equal,",
    predicate("{all: []}"): "predicate: all must be a list of predicates.",
    predicate("{oder: {metric: val_loss}}"): "no predicate 'oder'. Did you mean 'order'?",
    predicate("{order: {metrik: val_loss}}"): "no part 'metrik' in the predicate order. Did you mean 'metric'?",
    predicate("{order: {better: expert == 4}}"): "predicate order: metric is missing.",
    predicate(
        f"{{order: {ORDER.replace('val_loss', 'val_los')}}}"
    ): "no metric 'val_los' here. Did you mean 'val_loss'?",
    predicate(
        f"{{order: {ORDER.replace('noise', 'margin')}}}"
    ): "predicate order: noise, the expected standard deviation",
    predicate(f"{{order: {ORDER.replace('0.5 %', 'x')}}}"): "noise: x is no quantity. Write 1 %, 0.03 nats or 0.2",
    predicate(f"{{order: {ORDER.replace('0.5 %', '1.2.3 %')}}}"): "noise: 1.2.3 % is no number.",
    predicate(f"{{order: {ORDER.replace('0.5 %', '0')}}}"): "predicate order: noise, the expected",
    predicate(f"{{order: {ORDER.replace('}', ', effect: 0.2}')}}}"): "must all be in %, or none of them.",
    predicate("{order: {metric: params, better: k == 1, worse: k == 1, noise: 1 nats}}"): "params is not in nats",
    predicate(f"{{order: {ORDER.replace('expert == 4', 'expert = 4')}}}"): "Write == to compare.",
    predicate(f"{{order: {ORDER.replace('expert == 4', '3')}}}"): "better must be a condition on settings",
    predicate(f"{{order: {ORDER.replace('expert == 4', 'exprt == 4')}}}"): "no setting 'exprt' in 'exprt == 4'.",
    predicate(f"{{order: {ORDER.replace('val_loss', 'steps')}}}"): "neither higher nor lower steps is better.",
    predicate(
        "{equal: {metric: val_loss, first: expert == 2, second: expert == 4, noise: 1 %}}"
    ): "margin must be above 0",
    predicate(
        "{bound: {metric: val_loss, where: expert == 2, noise: 0.1}}"
    ): "predicate bound: above or below is missing.",
    predicate(
        "{bound: {metric: val_loss, where: expert == 2, above: 1, noise: 1 %}}"
    ): "are plain numbers here, not in %.",
    predicate("{bound: {metric: val_loss, above: 1, at: 0.1, noise: 1}}"): "only router_saturation can be read at",
    predicate(
        "{bound: {metric: router_saturation, above: 1, at: 2, noise: 1}}"
    ): "at=2 is not a fraction of the training",
    predicate("{bound: {metric: val_loss, above: 1, margin: 1, noise: 1}}"): "predicate bound: margin has no effect.",
    predicate("{bound: {metric: val_loss, above: 2, below: 1, noise: 1}}"): "no number is above 2 and below 1.",
    predicate(f"{{order: {ORDER.replace('}', ', higher: k == 1}')}}}"): "higher has no effect with better and worse",
    predicate("{trend: {metric: val_loss, along: exprt, direction: falls, noise: 1 %}}"): "no setting 'exprt'.",
    predicate("{trend: {metric: val_loss, along: expert, direction: up, noise: 1 %}}"): "predicate trend: direction=up",
    predicate(
        "{explains: {metric: val_loss, by: seconds, rather_than: params, noise: 0.1}}"
    ): "no metric 'seconds' here.",
    predicate(
        "{same_argmin: {metric: val_loss, setting: expert, across: [k == 1], margin: 1 %, noise: 1 %}}"
    ): "across must be a list of at least two conditions.",
}


@pytest.mark.parametrize("text", WRONG, ids=WRONG.values())
def test_a_wrong_part_is_refused(text: str, tmp_path: Path) -> None:
    """In at most three lines, with the name of the claim."""
    with pytest.raises(ConfigError) as error:
        load_claim(Composer(write(tmp_path, claim__mine=text)), "mine")
    assert WRONG[text] in str(error.value)
    assert "mine" in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_a_right_part_is_accepted(tmp_path: Path) -> None:
    """The text that the wrong ones differ from."""
    claim = load_claim(Composer(write(tmp_path, claim__mine=CLAIM_TEXT)), "mine")
    assert ("Experts help.", 3, "2101.03961") == (claim.sentence, claim.seeds, claim.source.arxiv)


def test_a_command_names_a_claim_and_has_seeds(tmp_path: Path) -> None:
    """Settings alone, and one seed, are refused."""
    folder = write(tmp_path, claim__mine=CLAIM_TEXT)
    for words, seeds, message in (
        (["k=2"], None, "name a claim before k=2. To list them: moe reproduce"),
        (["mine"], 1, "one seed has no interval: give at least 2, as in: --seeds 3"),
        (["mien"], None, "no claim 'mien'. Did you mean 'mine'?"),
    ):
        with pytest.raises(ConfigError) as error:
            plan_claim(words, seeds=seeds, config_dir=folder)
        assert message in str(error.value)
