"""`moe reproduce`: the list of claims, a claim before and after its runs, exit codes, and one claim that is trained."""

import json
from pathlib import Path

import pytest

from moe_cli.claims.plan import plan_claim
from moe_cli.config.compose import Composer
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
    result = moe("reproduce")
    assert 0 == result.exit_code, result.output
    lines = {line.split()[0]: line for line in result.stdout.splitlines() if line.strip()}
    assert set(list_sweeps(Composer(), CLAIM)) <= set(lines)
    assert "cannot tell here" in lines["balance_weight"]
    assert "not tried" in lines["more_experts"]
    assert "arXiv:2101.03961" in lines["more_experts"]
    found = {entry["claim"]: entry["verdict"] for entry in json.loads(moe("reproduce", "--json").stdout)}
    assert ("cannot tell here", None) == (found["balance_weight"], found["more_experts"])


def test_a_claim_is_planned_with_its_power(moe: Moe, tmp_path: Path) -> None:
    """--dry-run prints source, published figures, power, and every run, and makes no run."""
    result = moe("reproduce", "capacity_costs_little", "--seeds", 3, "--dry-run")
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


def test_a_decided_claim_ends_with_0_and_an_undecided_one_with_3(moe: Moe, tmp_path: Path) -> None:
    """On planted runs: measured next to published, differences, budget; the same in JSON."""
    folder = write(tmp_path / "mine", claim__true=TRUE)
    plan = plan_claim(["true"], config_dir=folder)
    complete_runs(plan, tmp_path / "outputs", lambda config: 3 + config.seed / 100)
    result = moe("reproduce", "true", "--config-dir", folder)
    assert 0 == result.exit_code, result.output
    text = " ".join(result.stdout.split())
    for piece in (
        "Holds: Bits per byte are below 4.",
        "measured +3.010 bits per byte (+2.985 bits per byte to +3.035 bits per byte), 3 seeds",
        "claimed below +4.000 bits per byte; published +3.000 bits per byte",
        "differs A tiny model.",
        "6 of 6 runs complete",
    ):
        assert piece in text, piece
    stored = json.loads(moe("reproduce", "true", "--config-dir", folder, "--json").stdout)
    assert ("holds", "moe reproduce true", [0, 1, 2]) == (stored["verdict"], stored["command"], stored["seeds"])
    complete_runs(plan, tmp_path / "outputs", lambda config: 4 + (config.seed - 1) / 100)
    assert 3 == moe("reproduce", "true", "--config-dir", folder).exit_code


@pytest.mark.slow
def test_true_and_false_claims_are_trained_and_told_apart(moe: Moe, settings: list[str], tmp_path: Path) -> None:
    """Tiny models that are trained: one sentence holds, its opposite is contradicted; nothing is trained again."""
    folder, words = write(tmp_path / "mine", claim__true=TRUE, claim__false=FALSE), settings[:-4]
    for name, verdict in (("true", "Contradicted"), ("false", "Holds")):
        options = ("--config-dir", folder, "-j", 2)
        result = moe("reproduce", name, *words, "train.batch_size=4", "train.log_every=2", *options)
        assert 0 == result.exit_code, result.output
        assert f"{verdict}: Bits per byte" in result.stdout
        again = moe("reproduce", name, *words, "train.batch_size=4", "train.log_every=2", *options)
        assert "6 done before, 0 to go" in again.stdout
        assert 1 == len(read_record(tmp_path / "outputs" / f"claim-{name}")["commands"])
