"""Looks at verdicts are remembered, and what looking again does to them is stated with figures that a simulation checks."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from moe_cli.cli.app import app
from moe_cli.files.reading import read_json
from moe_cli.files.writing import write_json
from moe_cli.report import looks
from moe_cli.report.intervals import t_quantile
from moe_cli.report.load import rows_below
from moe_cli.report.looks import FALSE_BETTER, FIRST_SEEDS, MAX_ADDED_SEEDS, Look, error_rate_at
from moe_cli.report.significance import (
    BETTER,
    ERROR_RATE,
    INCONCLUSIVE,
    PairedSample,
    additional_seeds_needed,
    verdicts,
)
from moe_cli.report.table import ReportQuery, build_table
from tests.report.folders import complete
from tests.runner import CliRunner


def add_seeds(outputs: Path, seeds: range, group: str = "mine", **settings: Any) -> None:
    for seed in seeds:
        complete(outputs, 1.83 + 0.01 * (seed % 3), group, expert=1, seed=seed, **settings)
        complete(outputs, 1.82 + 0.02 * (seed % 2), group, expert=8, seed=seed, **settings)


def begin(outputs: Path, group: str = "mine") -> None:
    (outputs / group).mkdir(parents=True, exist_ok=True)
    write_json(outputs / group / "sweep.json", {"name": group, "question": "Why?", "baseline": None})


def report(outputs: Path, *words: str, command: str = "report") -> str:
    result = CliRunner().invoke(app, [command, "mine", *words, "--outputs", str(outputs)])
    assert result.exit_code == 0, result.output
    return " ".join(result.stdout.split())


def remembered(outputs: Path, group: str = "mine") -> list[dict[str, Any]]:
    return list((read_json(outputs / group / "sweep.json") or {}).get("looks", []))


def test_a_look_at_more_seeds_is_counted_once(tmp_path: Path) -> None:
    """The same data again is no new look, in whatever format; more seeds are; one seed has no verdict. The question stays."""
    begin(tmp_path)
    add_seeds(tmp_path, range(1))
    report(tmp_path)
    assert [] == remembered(tmp_path)
    add_seeds(tmp_path, range(1, 3))
    assert "This is look" not in report(tmp_path)
    report(tmp_path, command="recommend")
    for words in ((), ("--format", "json"), ("--runs",)):
        report(tmp_path, *words)
    add_seeds(tmp_path, range(3, 5))
    assert "This is look 2 at" in report(tmp_path)
    assert "This is look 2 at" in report(tmp_path, command="recommend")
    add_seeds(tmp_path, range(5, 6))
    assert 3 == json.loads(report(tmp_path, "--json", command="recommend"))["look"]
    assert [[3], [5], [6]] == [list(look["seeds"].values()) for look in remembered(tmp_path)]
    assert [3, 5, 6] == [look["runs"] for look in remembered(tmp_path)]
    assert "Why?" == (read_json(tmp_path / "mine" / "sweep.json") or {})["question"]


def test_a_configuration_that_is_added_has_no_looks_before(tmp_path: Path) -> None:
    """A new configuration and another baseline have no earlier looks."""
    begin(tmp_path)
    add_seeds(tmp_path, range(3))
    report(tmp_path)
    for seed in range(3):
        complete(tmp_path, 1.7, "mine", expert=16, k=2, seed=seed)
    assert "This is look" not in report(tmp_path)
    assert "This is look" not in report(tmp_path, "--baseline", "expert=8")
    assert 3 == len(remembered(tmp_path))


def test_files_are_looks_and_a_figure_of_losses_is_none(tmp_path: Path) -> None:
    """A program that reads verdicts from a file has looked at them."""
    begin(tmp_path)
    add_seeds(tmp_path, range(3))
    report(tmp_path, "--plot", "val_bpb:expert")
    assert [] == remembered(tmp_path)
    report(tmp_path, "-o", str(tmp_path / "table.csv"))
    assert 1 == len(remembered(tmp_path))


def test_a_folder_that_cannot_be_written_is_reported_all_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The look is not remembered, and nothing is said. Runs outside of sweeps have no sweep.json, and get none."""
    add_seeds(tmp_path, range(3))
    report(tmp_path)
    assert not (tmp_path / "mine" / "sweep.json").exists()
    begin(tmp_path)

    def refuse(*_: object) -> None:
        raise PermissionError(13, "read-only")

    monkeypatch.setattr(looks, "change_record", refuse)
    assert "inconclusive" in report(tmp_path)
    assert "inconclusive" in report(tmp_path, command="recommend")
    assert [] == remembered(tmp_path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_read_only_folder(tmp_path: Path) -> None:
    """The same with the permissions of the file system."""
    begin(tmp_path)
    add_seeds(tmp_path, range(3))
    (tmp_path / "mine").chmod(0o500)
    assert "inconclusive" in report(tmp_path)
    (tmp_path / "mine").chmod(0o700)


def test_damaged_looks_stop_nothing(tmp_path: Path) -> None:
    """Damaged records of looks are set aside."""
    add_seeds(tmp_path, range(3))
    for odd in (
        3,
        ["x"],
        [{"baseline": {"expert": 1}, "seeds": 4}],
        [{"baseline": {"expert": 1}, "seeds": {"gpt": "x"}}],
    ):
        write_json(tmp_path / "mine" / "sweep.json", {"looks": odd})
        report(tmp_path)
        assert [3] == list(remembered(tmp_path)[-1]["seeds"].values())


def test_several_sweeps_remember_each_their_own(tmp_path: Path) -> None:
    """A report of two sweeps is a look at both."""
    for group, width in (("mine", 96), ("other", 64)):
        begin(tmp_path, group)
        add_seeds(tmp_path, range(3), group, model__d_model=width)
    report(tmp_path, "other")
    assert [1, 1] == [len(remembered(tmp_path, group)) for group in ("mine", "other")]
    assert 1 == build_table(rows_below(tmp_path), ReportQuery()).look.number


def test_a_later_look_widens_the_interval_and_the_same_look_again_does_not(tmp_path: Path) -> None:
    """The first look is as before; the second has the half-width of its error rate, however often it is printed."""
    begin(tmp_path)
    add_seeds(tmp_path, range(3))
    first = json.loads(report(tmp_path, "--format", "json"))
    assert first == json.loads(report(tmp_path, "--format", "json"))
    add_seeds(tmp_path, range(3, 5))
    second = json.loads(report(tmp_path, "--format", "json"))
    assert second == json.loads(report(tmp_path, "--format", "json"))
    for rows, number in ((first, 1), (second, 2)):
        row = next(row for row in rows if row["expert"] == 8)
        pairs = [((1.82 + 0.02 * (s % 2)), (1.83 + 0.01 * (s % 3))) for s in row["seeds"]]
        differences = np.array([(own - base) / base for own, base in pairs])
        error = differences.std(ddof=1) / np.sqrt(len(differences))
        t = t_quantile(1 - error_rate_at(number) / 2, len(differences) - 1)
        assert row["vs_baseline_interval"] == pytest.approx(t * error)


def test_a_verdict_that_only_the_first_look_allows(tmp_path: Path) -> None:
    """A difference between both error rates is better in a first report, and inconclusive after an earlier look."""
    for seen in (False, True):
        outputs = tmp_path / str(seen)
        begin(outputs)
        for seed in range(6):
            complete(outputs, 1.8, "mine", expert=1, seed=seed)
            complete(outputs, 1.8 - 0.01 + 0.008 * (seed % 2 * 2 - 1), "mine", expert=8, seed=seed)
            if seen and seed == 3:
                report(outputs)
        row = next(row for row in json.loads(report(outputs, "--format", "json")) if row["expert"] == 8)
        assert (INCONCLUSIVE if seen else BETTER) == row["verdict"]


def test_a_change_of_the_lowest_is_no_first_look(tmp_path: Path) -> None:
    """Without a baseline all pairs are looked at, so another lowest configuration does not begin to count again."""
    begin(tmp_path)
    for seed in range(3):
        complete(tmp_path, 1.80 + 0.01 * seed, "mine", expert=8, seed=seed)
        complete(tmp_path, 1.81 + 0.02 * (seed % 2), "mine", expert=16, seed=seed)
    report(tmp_path)
    for seed in range(3, 6):
        complete(tmp_path, 1.80 + 0.01 * seed, "mine", expert=8, seed=seed)
        complete(tmp_path, 1.70 + 0.02 * (seed % 2), "mine", expert=16, seed=seed)
    assert "This is look 2 at" in report(tmp_path)


def test_the_error_rates_of_later_looks_sum_to_less_than_that_of_the_first() -> None:
    """Any number of looks spends at most 7 %, which the docs state."""
    assert sum(error_rate_at(number) for number in range(1, 10_000)) < 0.07
    assert Look(1, is_counted=True).next_error_rate == error_rate_at(2) == Look(2).error_rate
    assert Look(1).next_error_rate == ERROR_RATE


def test_adding_seeds_until_better_is_valid_with_the_rates_of_looks() -> None:
    """Without a difference, the advised seeds are added until a verdict: 'better' at most 5 %, and more at 5 % each."""
    repetitions = 600

    def wrong(valid: bool) -> float:
        random, better = np.random.default_rng(7), 0
        for _ in range(repetitions):
            values = random.standard_normal(FIRST_SEEDS)
            for number in range(1, 7):
                look = Look(number if valid else 1, is_counted=valid)
                found = PairedSample(len(values), float(values.mean()), float(values.std(ddof=1)))
                verdict = verdicts([found], look.error_rate)[0]
                if verdict != INCONCLUSIVE:
                    better += verdict == BETTER
                    break
                advised = additional_seeds_needed(found, 1, look.next_error_rate)
                values = np.concatenate([values, random.standard_normal(min(MAX_ADDED_SEEDS, advised or 99))])
        return better / repetitions

    assert wrong(True) <= 0.05 < wrong(False)


@pytest.mark.slow
def test_false_better_by_simulation() -> None:
    """Without a difference: FIRST_SEEDS, then as many more as are advised, until a verdict; the table holds within 4 standard errors."""
    repetitions, random = 20_000, np.random.default_rng(5)
    decided = np.zeros(len(FALSE_BETTER))
    for _ in range(repetitions):
        values = random.standard_normal(FIRST_SEEDS)
        for look in range(len(FALSE_BETTER)):
            found = PairedSample(len(values), float(values.mean()), float(values.std(ddof=1)))
            assert found.p_value is not None
            if found.p_value < ERROR_RATE:
                decided[look] += 1
                break
            more = min(MAX_ADDED_SEEDS, additional_seeds_needed(found) or MAX_ADDED_SEEDS)
            values = np.concatenate([values, random.standard_normal(more)])
    # By symmetry half of the false verdicts are 'better'.
    rates = np.cumsum(decided) / repetitions / 2
    for expected, rate in zip(FALSE_BETTER, rates, strict=True):
        assert abs(rate - expected) < 4 * np.sqrt(2 * expected * (1 - 2 * expected) / repetitions) / 2 + 0.0005
