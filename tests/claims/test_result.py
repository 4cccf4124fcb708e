"""Results of claims on planted run folders: verdicts, budget, looks, and what would settle a claim."""

import json
import runpy
from collections.abc import Callable
from pathlib import Path

import pytest

from moe_cli.claims.plan import ClaimPlan, plan_claim, recorded_plan
from moe_cli.claims.records import CANNOT_TELL, CONTRADICTED, HOLDS
from moe_cli.claims.result import SIZES_OF_LAPTOP, FigureResult, read_result
from moe_cli.claims.text import claim_lines, figure_text, list_lines, measured_text, result_lines
from moe_cli.config.schema import RunConfig
from moe_cli.report.looks import error_rate_at
from moe_cli.report.significance import additional_seeds_needed, sample_of
from tests.claims.runs import complete_runs
from tests.claims.test_claim_file import CLAIM_TEXT
from tests.config.test_compose import write
from tests.report.folders import set_status
from tests.test_docs import JSON_TABLE, PAGES, ROOT, check_documented

NOISE = (0.001, -0.002, 0.0005, 0.0015, -0.001)


def planned(seeds: int | None = None) -> ClaimPlan:
    return plan_claim(["more_experts"], seeds=seeds)


def falling(step: float, noise: float = 1.0) -> Callable[[RunConfig], float]:
    """Returns the loss of a configuration: it changes by `step` for each doubling of the experts."""

    def loss(config: RunConfig) -> float:
        return 2 + step * config.expert.bit_length() + noise * NOISE[config.seed] * config.expert.bit_length()

    return loss


@pytest.mark.parametrize(
    ("step", "noise", "verdict"), [(-0.02, 1, HOLDS), (0.02, 1, CONTRADICTED), (-0.001, 1, CANNOT_TELL)]
)
def test_the_verdict_is_that_of_the_runs(step: float, noise: float, verdict: str, tmp_path: Path) -> None:
    """A loss that falls, rises, or hardly changes with experts; the same from the recorded command."""
    complete_runs(planned(), tmp_path, falling(step, noise))
    result = read_result(planned(), tmp_path)
    assert verdict == result.verdict
    assert (15, 15, 0, 15 * 102.5) == (
        result.budget.complete,
        result.budget.planned,
        result.budget.failed,
        result.budget.seconds,
    )
    recorded = recorded_plan("more_experts", tmp_path)
    assert recorded is not None
    assert result == read_result(recorded, tmp_path)
    content = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    check_documented("reproduce", dict(JSON_TABLE.findall(PAGES["docs/reference/json"]))["reproduce"], content)
    text = "\n".join(line.plain for line in result_lines(result, 100))
    assert text.startswith(f"{verdict.capitalize()}: With one expert per token")
    assert ("seeds, if the measured means are true:" in text) == (verdict == CANNOT_TELL)


def test_a_claim_is_not_judged_before_its_runs_have_ended(tmp_path: Path) -> None:
    """One open or failed run leaves it undecided: the seeds that are left are a selection. Both are counted and explained."""
    plan = planned()
    complete_runs(plan, tmp_path, falling(-0.02))
    run = plan.sweep.runs(tmp_path)[0]
    (run.path / "summary.json").unlink()
    for status, verdict, sentences in (
        ("queued", CANNOT_TELL, ["1 run of 15 not ended. The same command continues:", "moe reproduce more_experts"]),
        (
            "failed",
            CANNOT_TELL,
            [
                "1 run failed, and the seeds that are left are a selection. To retry:",
                "moe reproduce more_experts --retry-failed",
            ],
        ),
    ):
        set_status(run, status)
        result = read_result(plan, tmp_path)
        assert (verdict, sentences) == (result.verdict, [*result.settle[:2]])
    assert [2] == [figure.seeds for part in result.parts for figure in part.figures]


def test_differences_in_size_are_those_without_a_preset(tmp_path: Path) -> None:
    """The file names sizes of the laptop; with a preset, a sentence says so."""
    for words, sentences in (([], []), (["preset=workstation"], [SIZES_OF_LAPTOP])):
        plan = plan_claim(["more_experts", *words])
        assert read_result(plan, tmp_path).differences == (*plan.claim.differences, *sentences)


def test_seeds_that_are_added_are_another_look(tmp_path: Path) -> None:
    """The error rate falls with each number of seeds that was tried; the same seeds again are no new look."""
    complete_runs(planned(), tmp_path, falling(-0.001))
    assert (1, 0.05) == (planned().look(tmp_path), pytest.approx(planned().error_rate(tmp_path)))
    assert 2 == planned(5).look(tmp_path)
    complete_runs(planned(5), tmp_path, falling(-0.001))
    assert (1, 2) == (planned().look(tmp_path), planned(5).look(tmp_path))
    result = read_result(planned(5), tmp_path)
    assert result.error_rate < 0.01
    assert "at look 2, to which seeds were added" in "\n".join(line.plain for line in result_lines(result, 200))


def test_one_part_that_is_contradicted_decides(tmp_path: Path) -> None:
    """Where the mean of one part lies outside, the advice is the seeds that contradict it, whatever the others need."""
    plan = plan_claim(["capacity_costs_little"], seeds=3)
    losses = {2.0: (2.0, 2.0, 2.0), 1.25: (2.0, 2.03, 2.045), 1.0: (2.0, 2.07, 2.1)}
    complete_runs(plan, tmp_path, lambda config: losses[config.capacity or 0][config.seed])
    result = read_result(plan, tmp_path)
    assert (CANNOT_TELL, CANNOT_TELL) == tuple(part.verdict for part in result.parts)
    inside, outside = (part.more_seeds for part in result.parts)
    assert inside is not None
    assert outside is not None
    assert outside < inside
    assert f"About {3 + outside} seeds, if the measured means are true:" == result.settle[0]


def test_seeds_in_words_are_the_same_look(tmp_path: Path) -> None:
    """Seeds that are named by seed= are counted with those of --seeds; the advised command has one of both."""
    complete_runs(planned(), tmp_path, falling(-0.001))
    more = plan_claim(["more_experts", "seed=0,1,2,3,4"])
    assert (2, "moe reproduce more_experts seed=0,1,2,3,4") == (more.look(tmp_path), more.command)
    assert "moe reproduce more_experts --seeds 9" == more.command_with(["--seeds", "9"])


def test_what_settles_a_claim_can_be_typed(tmp_path: Path) -> None:
    """Further seeds are those of the next look; the folder is kept; a claim without presets is not sent to one."""
    folder = write(tmp_path / "mine", claim__mine=CLAIM_TEXT)
    plan = plan_claim(["mine"], name="elsewhere", config_dir=folder)
    losses = {2: (2.0, 2.0, 2.0), 4: (1.99, 2.0, 1.995)}
    complete_runs(plan, tmp_path, lambda config: losses[config.expert][config.seed])
    result = read_result(plan, tmp_path)
    assert CANNOT_TELL == result.verdict
    rows = [losses[expert] for expert in (4, 2)]
    sample = sample_of([(one - other) / other for one, other in zip(*rows, strict=True)])
    total = 3 + (additional_seeds_needed(sample, 1, error_rate_at(2)) or 0)
    command = f"moe reproduce mine --name elsewhere --seeds {total}"
    assert (f"About {total} seeds, if the measured means are true:", command) == result.settle
    large = plan_claim(["more_experts"], name="elsewhere")
    assert "moe reproduce more_experts --name elsewhere" == large.command
    complete_runs(large, tmp_path, falling(-0.02))
    assert "moe reproduce more_experts --name elsewhere preset=workstation" == read_result(large, tmp_path).settle[-1]


def test_the_published_effect_of_a_crossing_is_that_of_its_end(tmp_path: Path) -> None:
    """The figure at the smallest value has none."""
    plan = plan_claim(["learned_router_wins"], seeds=2)
    complete_runs(plan, tmp_path, lambda config: 2 + config.seed / 100)
    result = read_result(plan, tmp_path)
    first, last = (figure_text(figure, result.parts[0]) for figure in result.parts[0].figures)
    assert ("published" in first, "published +1.00 %" in last) == (False, True)


def test_power_is_stated_before_the_runs(tmp_path: Path) -> None:
    """By the noise of the claim's file, and by that of the runs where there are some."""
    plan = plan_claim(["capacity_costs_little"], seeds=3)
    text = " ".join(line.plain.strip() for line in claim_lines(plan.claim, plan.power(tmp_path), 200))
    assert "cannot decide within its budget: 3 seeds decide from" in text
    assert "as the claim's file states" in text
    needed = plan.power(tmp_path)[1].needed
    assert needed is not None
    assert f"{needed} seeds would do: --seeds {needed}" in text
    complete_runs(plan, tmp_path, lambda config: 2 + 0.0001 * NOISE[config.seed] * (config.capacity or 0))
    measured = plan.power(tmp_path)
    assert [True, True] == [power.is_measured and power.is_enough for power in measured]


def test_a_stored_result_has_a_section_on_the_page(tmp_path: Path) -> None:
    """The output of `--json` has what docs/generate.py reads: figures next to published ones, command, date, budget."""
    plan = plan_claim(["capacity_costs_little"], seeds=5)
    complete_runs(plan, tmp_path, lambda config: 2 + 0.001 * NOISE[config.seed] * (config.capacity or 0))
    stored = json.loads(json.dumps(read_result(plan, tmp_path).to_dict()))
    section = "\n".join(runpy.run_path(str(ROOT / "docs/generate.py"))["claim_section"](plan.claim, stored))
    for piece in (
        "## capacity_costs_little",
        "**Holds.**",
        "arXiv:2101.03961",
        "| -1.50 % to +1.50 % | +0.45 % | holds |",
        f"`moe reproduce capacity_costs_little --seeds 5`, {stored['date']}, version",
        "15 of 15 runs complete",
        "`moe report claim-capacity_costs_little`",
        f"- {plan.claim.differences[0]}",
        "`moe reproduce capacity_costs_little preset=workstation`",
        "Error rate: a wrong verdict in at most",
    ):
        assert piece in section, piece


@pytest.mark.parametrize(
    ("unit", "half_width", "text"),
    [
        ("", 0.2, "+0.300 (+0.100 to +0.500)"),
        ("", 0.0002, "+0.30000 (+0.29980 to +0.30020)"),
        ("", 0.0, "+0.300 (+0.300 to +0.300)"),
        ("%", 0.2, "+30.00 % (+10.00 % to +50.00 %)"),
        ("%", 0.00002, "+30.0000 % (+29.9980 % to +30.0020 %)"),
    ],
)
def test_a_figure_has_two_digits_of_its_interval(unit: str, half_width: float, text: str) -> None:
    """A narrow interval is not rounded away."""
    figure = FigureResult("difference", unit, 0.3, 0.3 - half_width, 0.3 + half_width, 5, None, 0.0)
    assert f"measured {text}, 5 seeds" == measured_text(figure, "order")


def test_the_list_fits_any_width() -> None:
    """Name and verdict are always there; source and sentence as far as there is room."""
    claim = planned().claim
    for width, pieces in ((30, ()), (60, ("arXiv:2101.03961",)), (100, ("arXiv:2101.03961", "With one expert per"))):
        first = list_lines([claim, claim], [None, HOLDS], width)[1].plain
        assert len(first) <= width
        assert all(piece in first for piece in ("more_experts", "not tried", *pieces)), first


def test_a_claim_without_runs_is_not_recorded(tmp_path: Path) -> None:
    """Neither without a folder, nor with a record that names no claim."""
    assert recorded_plan("more_experts", tmp_path) is None
    (tmp_path / "claim-more_experts").mkdir()
    for words in (["no_such_claim"], [], "text", [3]):
        (tmp_path / "claim-more_experts/sweep.json").write_text(json.dumps({"commands": [{"words": words}]}))
        assert recorded_plan("more_experts", tmp_path) is None
