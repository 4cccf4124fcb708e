"""The ledger counts comparisons and looks at each validation set, from the records of the sweeps alone."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.app import app
from moe_cli.files.reading import read_json
from moe_cli.files.writing import write_json
from moe_cli.report import ledger
from tests.report.folders import complete
from tests.runner import CliRunner


def invoke(*words: str) -> str:
    result = CliRunner().invoke(app, list(words))
    assert result.exit_code == 0, result.output
    return result.stdout


def look(outputs: Path, group: str, seeds: range) -> None:
    (outputs / group).mkdir(parents=True, exist_ok=True)
    if not (outputs / group / "sweep.json").exists():
        write_json(outputs / group / "sweep.json", {"name": group, "baseline": None})
    for seed in seeds:
        for expert in (1, 8, 16):
            complete(outputs, 1.8 + 0.01 * ((seed * expert) % 3), group, expert=expert, seed=seed)
    invoke("report", group, "--outputs", str(outputs))


def uses(outputs: Path) -> list[dict[str, Any]]:
    return list(json.loads(invoke("runs", "ledger", "--json", "--outputs", str(outputs))))


def test_looks_of_all_sweeps_are_counted_by_data(tmp_path: Path) -> None:
    """Two sweeps of two comparisons each; one was looked at twice. Printing a report again adds nothing."""
    assert [] == uses(tmp_path)
    assert "no verdicts were read yet" in invoke("runs", "ledger", "--outputs", str(tmp_path))
    look(tmp_path, "one", range(2))
    look(tmp_path, "two", range(2))
    look(tmp_path, "two", range(2, 4))
    invoke("report", "two", "--outputs", str(tmp_path))
    (use,) = uses(tmp_path)
    assert {"data": "ab" * 32, "corpus": "python", "sweeps": ["one", "two"]}.items() <= use.items()
    assert (3, 4, 6) == (use["looks"], use["comparisons"], use["verdicts"])
    assert "python (ababab)" in invoke("runs", "ledger", "--outputs", str(tmp_path))


def test_broken_records_and_hostile_names(tmp_path: Path) -> None:
    """Broken entries are skipped, removed runs have unknown data, names of other folders are not followed."""
    look(tmp_path, "one", range(2))
    path = tmp_path / "one" / "sweep.json"
    record = read_json(path) or {}
    secret = tmp_path / "secret"
    secret.mkdir()
    write_json(secret / "summary.json", {"corpus_sha256": "cd" * 32, "corpus": "\x1b[31mred"})
    broken = ["x", {}, {"seeds": 3}, {"seeds": {"a": "b", "c": True}}, {"seeds": {"../secret": 3}, "baseline": None}]
    write_json(path, {**record, "looks": [*record["looks"], *record["looks"], *broken]})
    known, unknown = uses(tmp_path)
    assert (1, 2, 2) == (known["looks"], known["comparisons"], known["verdicts"])
    assert (None, 1) == (unknown["data"], unknown["comparisons"])
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "sweep.json").write_text("{broken")
    assert 2 == len(uses(tmp_path))
    sane = ledger.ValidationUse("ab" * 32, "\x1b[31mred", ("one",), 1, 1, 1)
    assert "\x1b" not in ledger.data_name(sane)


def test_a_report_says_when_several_sweeps_used_the_validation_set_often(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One sweep is allowed for by its own report; the line comes with the second, in the table alone."""
    monkeypatch.setattr(ledger, "MANY_COMPARISONS", 2)
    look(tmp_path, "one", range(2))
    assert "moe runs ledger" not in invoke("report", "one", "--outputs", str(tmp_path))
    look(tmp_path, "two", range(2))
    text = " ".join(invoke("report", "one", "--outputs", str(tmp_path)).split())
    assert "was used for 4 comparisons in 2 sweeps" in text
    assert "moe runs ledger" not in invoke("report", "one", "--format", "csv", "--outputs", str(tmp_path))
