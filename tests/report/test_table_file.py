"""Runs of other programs: a CSV, TSV or JSON Lines file is reported like folders of runs."""

import json
from pathlib import Path
from typing import Any

import pytest

from moe_cli.cli.app import app
from moe_cli.errors import ConfigError
from moe_cli.report.load import load_selection
from moe_cli.report.run_row import RunRow
from moe_cli.report.table_file import meaning_of
from tests.report.folders import sweep_of_three_seeds
from tests.runner import CliRunner

# A dense and a sparse model with three seeds each; names of other libraries.
ROWS = [
    {
        "method": method,
        "num_experts": expert,
        "top_k": k,
        "seed": seed,
        "final_loss": loss + 0.01 * seed,
        "tokens": 10**7,
    }
    for method, expert, k, loss in (("dense", 1, 1, 3.1), ("switch", 8, 1, 3.0))
    for seed in range(3)
]


def write(path: Path, rows: list[dict[str, Any]], delimiter: str = ",") -> Path:
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return path
    lines = [rows[0], *(row.values() for row in rows)]
    path.write_text("\ufeff" + "\r\n".join(delimiter.join(map(str, line)) for line in lines), encoding="utf-8")
    return path


def read(path: Path) -> list[RunRow]:
    return load_selection(path.parent / "none", [str(path)])


def report(*words: object) -> list[dict[str, Any]]:
    result = CliRunner().invoke(app, ["report", *map(str, words), "--format", "json"])
    assert not result.exit_code, result.output
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    return rows


def test_our_own_table_of_runs_gives_the_report_of_the_runs(tmp_path: Path) -> None:
    """The means, intervals, differences and verdicts of the runs' folders, without a folder."""
    outputs, table = tmp_path / "outputs", tmp_path / "runs.csv"
    sweep_of_three_seeds(outputs)
    arguments = ["report", "sparsity", "--outputs", str(outputs)]
    assert 0 == CliRunner().invoke(app, [*arguments, "--runs", "-o", str(table)]).exit_code
    kept = ("expert", "k", "seeds", "val_bpb", "val_bpb_interval", "vs_baseline", "vs_baseline_interval", "verdict")
    means = tmp_path / "means.csv"
    assert 0 == CliRunner().invoke(app, [*arguments, "-o", str(means)]).exit_code
    with pytest.raises(ConfigError, match="has means over seeds"):
        read(means)
    expected, found = report("sparsity", "--outputs", outputs), report(table)
    assert len(expected) == 4
    assert [[row[name] for name in kept] for row in expected] == [
        [pytest.approx(row[name]) if name != "verdict" else row[name] for name in kept] for row in found
    ]


def test_a_table_may_have_a_k_for_each_layer(tmp_path: Path) -> None:
    """As our own tables of runs have it; other text is still refused."""
    rows = [{"expert": 8, "k": k, "seed": 0, "val_loss": 3.0} for k in ("[1,2]", 2)]
    assert ["[1,2]", 2] == [row.get("k") for row in read(write(tmp_path / "a.jsonl", rows))]
    with pytest.raises(ConfigError, match="k=two is not a whole number of at least 1"):
        read(write(tmp_path / "b.jsonl", [{**rows[0], "k": "two"}]))


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.tsv", "\t"), ("a.jsonl", "")])
def test_every_form_is_read(tmp_path: Path, name: str, delimiter: str) -> None:
    """Experts, k, seeds and losses by the names of others; the name of each method is no setting."""
    rows = read(write(tmp_path / name, ROWS, delimiter))
    assert [(1, 1, seed) for seed in range(3)] + [(8, 1, seed) for seed in range(3)] == [
        (row.expert, row.k, row.seed) for row in rows
    ]
    assert [row["final_loss"] for row in ROWS] == [row.results.val_loss for row in rows]
    assert {"completed"} == {row.status for row in rows}
    assert ["dense", "switch"] == list(dict.fromkeys(row["method"] for row in rows))
    dense, sparse = report(tmp_path / name)[::-1]
    assert ["better", None] == [sparse["verdict"], dense["verdict"]]
    assert -0.1 / 3.11 == pytest.approx(sparse["vs_baseline"], rel=1e-4)


def test_columns_have_the_names_of_others() -> None:
    columns = [
        "Top-K",
        "learning_rate",
        "val loss",
        "bits/byte",
        "Loss",
        "eval/loss",
        "epochs",
        "model.d_model",
        "State",
    ]
    expected = [
        "k",
        "optim.lr",
        "val_loss",
        "val_bpb",
        "val_loss",
        "val_loss",
        "epochs",
        "model.d_model",
        "status",
    ]
    assert expected == [meaning_of(column) for column in columns]


def test_a_number_that_never_occurs_twice_is_no_setting(tmp_path: Path) -> None:
    """A measurement does not make every run a configuration of its own; a width does make several."""
    rows = [{**row, "norm": index / 7, "width": 64 << index % 2} for index, row in enumerate([*ROWS, *ROWS])]
    found = read(write(tmp_path / "a.csv", rows))
    assert {"table.width"} == {name for name in found[0].settings if name.startswith("table.")}
    assert 1 / 7 == pytest.approx(found[1]["norm"])


def test_without_seeds_runs_are_numbered(tmp_path: Path) -> None:
    rows = [{name: value for name, value in row.items() if name != "seed"} for row in ROWS]
    assert [0, 1, 2, 0, 1, 2] == [row.seed for row in read(write(tmp_path / "a.csv", rows))]


def test_runs_without_result_have_failed(tmp_path: Path) -> None:
    cases = [("ok", 3), ("crashed", 3), ("ok", "nan"), ("ok", "3.O"), ("ok", -3)]
    rows = [{**ROWS[0], "state": state, "loss": loss} for state, loss in cases]
    for row in rows:
        del row["final_loss"]
    found = read(write(tmp_path / "a.csv", rows))
    assert ["completed"] + 4 * ["failed"] == [row.status for row in found]
    reasons = [
        "its status is crashed",
        "it has no loss",
        "its val_loss is not a number: 3.O",
        "its val_loss is negative: -3",
    ]
    assert [None, *reasons] == [row.reason for row in found]


WRONG = {
    "a.csv": [
        (b"", "no column with a loss; it has no rows"),
        (b"a,b\n1,2\n", r"no column with a loss; its columns: a, b\.\nName one loss"),
        (b"loss,a\n1\n", "has 1 value in row 2, and 2 columns"),
        (b"loss,a,a\n1,2,3\n", "has the column 'a' twice"),
        (b"loss,val_loss\n1,2\n", "the columns 'loss' and 'val_loss' are both val_loss"),
        (b"loss\n\xff\n", "is not UTF-8 text"),
        (b'loss\n"1\n', "is not a whole table"),
        (b"loss,\x1b[31m\n1\n", "has 1 value"),
        (b"loss,expert\n1,8.0\n1,2.5\n", "row 2: expert=2.5 is not a whole number of at least 1"),
        (b"loss,k\n1,two\x1b\n", r"row 1: k=two\? is not a whole number"),
        (b"loss,seed\n1,-1\n", "row 1: seed=-1 is not a whole number of at least 0"),
        (b"loss,expert,k\n1,1,2\n1,4,8\n", "row 2: k=8 is more than expert=4, the experts that there are"),
        (b"loss,status\n1,crashed\n,ok\n", "has 2 runs, and none has ended well; the first: its status is crashed"),
    ],
    "a.jsonl": [(b'{"loss": 1}\n[1]\n', "line 2 is JSON, but no object"), (b'{"loss": 1', "line 1 is not valid JSON")],
}


@pytest.mark.parametrize(("name", "content", "message"), [(name, *case) for name in WRONG for case in WRONG[name]])
def test_what_cannot_be_read_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message) as error:
        read(path)
    assert len(str(error.value).splitlines()) <= 3
    assert "\x1b" not in str(error.value)


def test_nothing_is_written_beside_a_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "a.csv", ROWS)
    for command in ("report", "recommend", "scaling"):
        result = CliRunner().invoke(app, [command, "a.csv"])
        assert result.exit_code in ((0,) if command != "scaling" else (2,)), result.output
    assert ["a.csv"] == [path.name for path in tmp_path.iterdir()]


def test_a_table_is_not_overwritten_by_its_report(tmp_path: Path) -> None:
    """A report has a row per configuration, and the runs would be lost; a link to the table is the table."""
    table, link = write(tmp_path / "a.csv", ROWS), tmp_path / "link.csv"
    link.symlink_to(table)
    before = table.read_bytes()
    for target in (table, link):
        result = CliRunner().invoke(app, ["report", str(table), "-o", str(target)])
        assert (2, True) == (result.exit_code, "is the table that is read" in result.output), result.output
    assert before == table.read_bytes()


@pytest.mark.parametrize(("name", "message"), [("b.csv", "there is no file b.csv."), ("b.json", "must end in .csv")])
def test_a_name_of_a_file_that_is_no_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "b.json").write_text("[]")
    result = CliRunner().invoke(app, ["report", name])
    assert (2, True) == (result.exit_code, message in result.output), result.output


def test_no_command_of_ours_is_given_for_a_table(tmp_path: Path) -> None:
    """Other settings of these runs are unknown: moe would train other models."""
    sizes = {"params": 10**6, "active_params": 10**6}
    table = write(tmp_path / "a.csv", [row | sizes for row in ROWS if row["seed"] == 0])
    for command in ("report", "recommend", "scaling"):
        output = CliRunner().invoke(app, [command, str(table)]).output
        assert "moe sweep" not in output
        assert "moe train" not in output
    assert "Add rows with others to the table." in output


def test_a_huge_loss_fits_into_the_table(tmp_path: Path) -> None:
    table = write(tmp_path / "a.csv", [{"expert": 1, "loss": 3}, {"expert": 8, "loss": 1e300}])
    output = CliRunner().invoke(app, ["report", str(table)]).output
    assert "1.00e+300" in output
    assert max(map(len, output.splitlines())) <= 80


def test_a_law_is_fitted_to_a_table(tmp_path: Path) -> None:
    """Losses of a planted law, which has no experts: the fit needs sizes, tokens and losses alone."""
    rows = [
        {
            "experts": expert,
            "k": 1,
            "seed": 0,
            "params": params * expert,
            "active_params": params,
            "tokens": tokens,
            "loss": 1.5 + 40 * params**-0.3 * expert**-0.1 + 60 * tokens**-0.3,
        }
        for expert in (1, 4, 16)
        for params in (10**6, 3 * 10**6, 10**7)
        for tokens in (10**7, 4 * 10**7, 10**8)
    ]
    write(tmp_path / "a.csv", rows)
    result = CliRunner().invoke(app, ["scaling", str(tmp_path / "a.csv")])
    assert 0 == result.exit_code, result.output
