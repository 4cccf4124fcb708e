"""`moe reproduce`: the list of claims, a claim before and after its runs, exit codes, and one claim that is trained."""

import json
from pathlib import Path

import pytest

from moe_cli.claims.plan import plan_claim
from moe_cli.config.compose import Composer
from moe_cli.config.schema import RunConfig
from moe_cli.config.sweep_file import CLAIM, list_sweeps
from moe_cli.report.sweep_record import read_record
from tests.claims.runs import complete_runs
from tests.cli.conftest import Moe
from tests.config.test_compose import write

CLAIM_TEXT = """# {sentence}
source: {{title: A paper, arxiv: "2101.03961", place: table 1}}
published: {{setting: a large model, figures: {{loss of the larger one: 1.9}}}}
differences: [A tiny model.]
grid: {{expert: [2, 4]}}
set: {{k: 1}}
budget: {{steps: 6}}
seeds: 3
predicate: {{bound: {{metric: val_bpb, where: expert == 4, {limit}: 4, noise: 0.1, effect: {effect}}}}}
"""
TRUE = CLAIM_TEXT.format(sentence="Bits per byte are below 4.", limit="below", effect=3.0)
FALSE = CLAIM_TEXT.format(sentence="Bits per byte are above 4.", limit="above", effect=5.0)


def test_claims_are_listed_with_their_verdicts(moe: Moe, tmp_path: Path) -> None:
    """Every claim with its source; that of a claim whose runs exist is its verdict, without running anything."""
    plan = plan_claim(["balance_weight"])
    complete_runs(plan, tmp_path / "outputs", lambda config: 2 + config.seed / 100, max_violation=0.1)
    result = moe("reproduce", "--json")
    assert 0 == result.exit_code, result.output
    found = {entry["claim"]: entry for entry in json.loads(result.stdout)}
    assert list_sweeps(Composer(), CLAIM) == list(found)
    assert ("cannot tell here", None) == (found["balance_weight"]["verdict"], found["more_experts"]["verdict"])
    assert ("arXiv:2101.03961", "marin#5387") == (found["more_experts"]["source"], found["speedup_grows"]["source"])


def test_a_claim_is_planned_with_its_power(moe: Moe, text: Path, tmp_path: Path) -> None:
    """--dry-run prints source, published figures, power, and every run, and makes no run."""
    result = moe("reproduce", "capacity_costs_little", "data=text", f"data.path={text}", "--seeds", 3, "--dry-run")
    assert 0 == result.exit_code, result.output
    text = " ".join(result.stdout.split())
    for piece in ("Switch Transformers", "table 1", "-1.554", "cannot decide within its budget", "= 9 runs"):
        assert piece in text, piece
    assert not (tmp_path / "outputs/claim-capacity_costs_little").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["more_expert"], "no claim 'more_expert'. Did you mean 'more_experts'?"),
        (["k=2"], "name a claim before k=2. To list them: moe reproduce"),
        (["--seeds", "3"], "--seeds needs a claim. To list them: moe reproduce"),
        (["--retry-failed"], "--retry-failed needs a claim. To list them: moe reproduce"),
        (["more_experts", "--seeds", "1"], "one seed has no interval: give at least 2"),
        (["more_experts", "--dry-run", "--json"], "--dry-run prints a plan for people: leave out --json."),
        (["more_experts", "expert=4"], "expert needs at least two values above 0 where true. There are: 4."),
        (["more_experts", "preset=laptop,cluster"], "names several presets: a claim has one."),
    ],
)
def test_wrong_requests(moe: Moe, words: list[str], message: str) -> None:
    """Exit code 2, and at most three lines."""
    result = moe("reproduce", *words)
    assert 2 == result.exit_code, result.output
    assert message in " ".join(result.stderr.split())
    assert len(result.stderr.splitlines()) <= 4


def test_a_decided_claim_ends_with_0_and_an_undecided_one_with_3(moe: Moe, text: Path, tmp_path: Path) -> None:
    """On planted runs: measured next to published, differences, budget; the same in JSON."""
    words = ["capacity_costs_little", "data=text", f"data.path={text}", "train.steps=6"]
    plan, command = plan_claim(words, seeds=5), ("reproduce", *words, "--seeds", 5)
    noise = (0.001, 0.0, 0.0005, -0.001, -0.0005)
    losses = {2.0: 2.0, 1.25: 2.002, 1.0: 2.008}

    def loss(config: RunConfig) -> float:
        return losses[config.capacity or 0] + noise[config.seed] * (config.capacity == 2.0)

    complete_runs(plan, tmp_path / "outputs", loss)
    result = moe(*command)
    assert 0 == result.exit_code, result.output
    printed = " ".join(result.stdout.split())
    for piece in (
        "Holds: With one expert per token, capacities of 1.0 and 1.25 change the loss by less than 1.5 % against 2.0.",
        "measured +0.400 % (+0.351 % to +0.449 %), 5 seeds; claimed -1.50 % to +1.50 %; published +0.45 %",
        "differs A causal decoder with 8 experts",
        "15 of 15 runs complete",
    ):
        assert piece in printed, piece
    stored = json.loads(moe(*command, "--json").stdout)
    assert ("holds", plan.command, [0, 1, 2, 3, 4]) == (stored["verdict"], stored["command"], stored["seeds"])
    losses[1.0] = 2.0299
    complete_runs(plan, tmp_path / "outputs", loss)
    assert 3 == moe(*command).exit_code


@pytest.mark.slow
def test_true_and_false_claims_are_trained_and_told_apart(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """Tiny models that are trained: one sentence holds, its opposite is contradicted; nothing is trained again."""
    folder, words = write(tmp_path / "mine", claim__true=TRUE, claim__false=FALSE), settings[:-5]
    for name, verdict in (("true", "Contradicted"), ("false", "Holds")):
        options = ("--config-dir", folder, "-j", 2)
        result = moe("reproduce", name, *words, "train.batch_size=4", "train.log_every=2", *options)
        assert 0 == result.exit_code, result.output
        assert f"{verdict}: Bits per byte" in result.stdout
        again = moe("reproduce", name, *words, "train.batch_size=4", "train.log_every=2", *options)
        assert "6 done before, 0 to go" in again.stdout
        assert 1 == len(read_record(tmp_path / "outputs" / f"claim-{name}")["commands"])
