"""moe runs: lists, tags, removes, restores, frees; wrong words are errors that say what to do."""

import json
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_cli import load_runs
from moe_cli.cli.runs.cleanup import parse_age
from moe_cli.files.writing import write_json
from moe_cli.runs.folder import FAILED, INTERRUPTED, PENDING, RUNNING, Run
from moe_cli.runs.lookup import list_runs_by_age
from tests.cli.conftest import Moe
from tests.report.folders import complete, set_status, stopped, sweep_of_three_seeds


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    """Where `moe` looks, with a complete, a failed and an interrupted run, the complete one the oldest."""
    folder = tmp_path / "outputs"
    runs = [
        complete(folder, 1.75, "sparsity", expert=8, k=2),
        stopped(folder, FAILED, "out of memory.\nmore", "sparsity", expert=16, k=2),
        stopped(folder, INTERRUPTED, "stopped at once", expert=4),
    ]
    for number, run in enumerate(runs):
        set_status(run, run.status()["status"], created=time.time() - 7200 + number, reason=run.status().get("reason"))
    return folder


def test_runs_alone_prints_its_help(moe: Moe) -> None:
    """Every sub-command is listed."""
    listed = re.findall(r"^  (\w+)  ", moe("runs").output.split("Commands:")[1], flags=re.M)
    assert listed == ["ls", "show", "experts", "diff", "ledger", "tag", "rm", "restore", "clean", "watch"]


def test_ls_has_a_line_a_run(moe: Moe, outputs: Path) -> None:
    """Newest last, piped with all columns."""
    header, *lines = moe("runs", "ls").stdout.splitlines()
    assert header.split()[:6] == ["run", "sweep", "status", "expert", "done", "bits/byte"]
    assert [line.split()[:3] for line in lines] == [
        [run.id, run.sweep, run.status()["status"]] for run in list_runs_by_age(outputs)
    ]
    assert lines[0].split()[3:8] == ["8", "100", "%", "1.750", "2h"]
    assert lines[1].endswith("out of memory.")


def test_ls_shows_the_settings_in_which_runs_differ(moe: Moe, tmp_path: Path) -> None:
    """A column for each of them, with - for the k and the router of a dense run; no column without a difference."""
    for k, router in ((1, "switch"), (2, "sigmoid")):
        complete(tmp_path / "outputs", 1.75, "routers", expert=8, k=k, router=router)
    complete(tmp_path / "outputs", 1.75, "routers", expert=1)
    header, *lines = moe("runs", "ls", "routers").stdout.splitlines()
    assert ["expert", "k", "router", "done"] == header.split()[3:7]
    assert [["8", "1", "switch"], ["8", "2", "sigmoid"], ["1", "-", "-"]] == [line.split()[3:6] for line in lines]


def test_ls_chooses(moe: Moe, outputs: Path) -> None:
    """By sweep, by status, by tag; what is left out is not shown, and that nothing is left is said."""
    done, failed, stopped_run = list_runs_by_age(outputs)
    moe("runs", "tag", done.id, "good")

    def shown(*words: str) -> list[str]:
        return [line["run"] for line in json.loads(moe("runs", "ls", "--json", *words).stdout)]

    assert shown("sparsity") == [done.id, failed.id]
    assert shown("--status", "failed,interrupted") == [failed.id, stopped_run.id]
    assert shown("--tag", "good") == [done.id]
    assert shown("--tag", "bad") == []
    assert moe("runs", "ls", "--tag", "bad").stderr == "no matching runs (3 checked).\n"


def test_tags_are_shown_everywhere(moe: Moe, outputs: Path) -> None:
    """Added, added again, taken away; in ls, show, load_runs and the report's filter."""
    done, failed, _ = list_runs_by_age(outputs)
    assert moe("runs", "tag", done.id, "good", "+baseline").stdout == f"{done.id}   tags good, baseline\n"
    assert moe("runs", "tag", done.id, "good").stderr == f"note: {done.id} already has the tag 'good'.\n"
    assert "good,baseline" in moe("runs", "ls").stdout
    assert "tags good, baseline" in moe("runs", "show", done.id).stdout
    assert list(load_runs(outputs)["tags"]) == [["good", "baseline"], [], []]
    found = json.loads(moe("report", "--where", "'good' in tags", "--format", "json").stdout)
    assert [row["runs"] for row in found] == [[done.id]]
    assert moe("runs", "tag", done.id, "good", "--remove").stdout == f"{done.id}   tags baseline\n"
    assert "has no tag 'good'" in moe("runs", "tag", failed.id, "good", "--remove").stderr
    assert not (failed.path / "tags.json").exists()


def test_a_configuration_has_the_tags_of_its_seeds(moe: Moe, outputs: Path) -> None:
    """In a report that folds seeds, each tag once."""
    twin = complete(outputs, 1.76, "sparsity", expert=8, k=2, seed=1)
    first = list_runs_by_age(outputs)[0]
    moe("runs", "tag", first.id, "good")
    moe("runs", "tag", twin.id, "good", "late")
    rows = json.loads(moe("report", "--format", "json", "--columns", "runs,tags").stdout)
    assert {"runs": [first.id, twin.id], "tags": ["good", "late"]} in rows


def test_rm_and_restore(moe: Moe, outputs: Path) -> None:
    """Removed runs are in no list and no report; restored they are back."""
    done, failed, _ = list_runs_by_age(outputs)
    result = moe("runs", "rm", done.id)
    assert result.stdout.splitlines()[-1] == f"1 run is in the trash. Undo: moe runs restore {done.id}"
    assert done.id not in moe("runs", "ls").stdout + moe("report").stdout
    assert f"sparsity/{done.id}" in moe("runs", "restore").stdout
    assert moe("runs", "restore", done.id).stdout == f"restored sparsity/{done.id}\n"
    assert done in list_runs_by_age(outputs)
    assert moe("runs", "rm", "--sweep", "sparsity", "--yes").exit_code == 0
    assert moe("runs", "restore", "sparsity").stdout.splitlines() == [
        f"restored sparsity/{run.id}" for run in (done, failed)
    ]


def test_rm_of_several_asks(moe: Moe, outputs: Path) -> None:
    """Without a terminal `moe runs rm` of several runs needs --yes; without --yes it moves no run."""
    result = moe("runs", "rm", "--status", "failed,interrupted")
    assert (result.exit_code, len(list_runs_by_age(outputs))) == (2, 3)
    assert "move 2 runs to the trash? Not a terminal: pass --yes to confirm." in result.stderr
    assert moe("runs", "rm", "--status", "failed,interrupted", "--yes").exit_code == 0
    assert [run.status()["status"] for run in list_runs_by_age(outputs)] == ["completed"]


def test_rm_moves_nothing_if_one_is_at_work(moe: Moe, outputs: Path) -> None:
    """All are asked before the first is moved."""
    done, *_ = list_runs_by_age(outputs)
    running = stopped(outputs, RUNNING, expert=2, k=1)
    set_status(running, RUNNING, host="elsewhere", heartbeat=time.time())
    result = moe("runs", "rm", done.id, running.id, "--yes")
    assert (result.exit_code, len(list_runs_by_age(outputs))) == (2, 4)
    assert result.stderr == f"error: {running.id} is running: wait for it or stop it.\n"


def test_gc_says_and_frees_only_on_request(moe: Moe, outputs: Path) -> None:
    """Without --yes nothing goes; with it, what was asked for, to the byte."""
    done, failed, _ = list_runs_by_age(outputs)
    for step in (10, 20):
        folder = done.path / "checkpoints" / f"step_{step:08d}"
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"x" * 5_000)
    moe("runs", "rm", failed.id)
    assert "nothing was deleted" in moe("runs", "clean", "--older-than", "0d", "--checkpoints").stdout
    kept = json.loads(moe("runs", "clean", "--yes", "--json").stdout)
    assert [(each["kind"], each["freed"]) for each in kept] == [("checkpoints", False)]
    freed = json.loads(moe("runs", "clean", "--older-than", "0d", "--checkpoints", "--yes", "--json").stdout)
    assert [(each["kind"], each["freed"]) for each in freed] == [("trash", True), ("checkpoints", True)]
    assert freed[1]["bytes"] == 5_000
    assert [path.name for path in done.checkpoints()] == ["step_00000020"]
    assert moe("runs", "restore").stdout == "the trash is empty.\n"
    assert moe("runs", "clean").stdout == "nothing can be deleted.\n"


def test_ages() -> None:
    """Days, hours, minutes, in seconds."""
    assert [parse_age(text) for text in ("0d", "30d", "12h", "5m")] == [0, 2_592_000, 43_200, 300]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["ls", "sparsty"],
            "error: no sweep, run or folder 'sparsty' in OUTPUTS. Did you mean 'sparsity'? See: moe runs ls",
        ),
        (
            ["ls", "--status", "fail"],
            "error: --status fail: there are pending, running, completed, failed, pruned, interrupted, imported. Did you mean 'failed'?",
        ),
        (
            ["ls", "--status", ","],
            "error: --status is empty: give some of pending, running, completed, failed, pruned, interrupted, imported.",
        ),
        (["rm"], "error: give either runs by name, or --status and --sweep. See: moe runs ls"),
        (
            ["rm", "x", "--sweep", "sparsity"],
            "error: give either runs by name, or --status and --sweep. See: moe runs ls",
        ),
        (["rm", "--sweep", "nosuch"], "error: no sweep 'nosuch' in OUTPUTS. There are: runs, sparsity."),
        (
            ["tag", "latest", "a b"],
            "error: 'a b' is no tag: give one word without spaces, commas or quotes, such as baseline.",
        ),
        (["diff", "latest", "latest"], "error: 'latest' and 'latest' are one run, LATEST: give two."),
        (
            ["clean", "--older-than", "3"],
            "error: --older-than 3: give days or hours, such as 30d or 12h; 0d means all.",
        ),
        (["restore", "x"], "error: no run 'x' in the trash: it is empty."),
        (["show", "nosuch"], "error: no sweep, run or folder 'nosuch' in OUTPUTS. See: moe runs ls"),
        (["watch", "nosuch"], "error: no sweep, run or folder 'nosuch' in OUTPUTS. See: moe runs ls"),
    ],
)
def test_wrong_words(moe: Moe, outputs: Path, words: list[str], message: str) -> None:
    """One line that says what is wrong and what to do, exit code 2."""
    result = moe("runs", *words)
    said = result.stderr.replace(str(outputs), "OUTPUTS").replace(list_runs_by_age(outputs)[-1].id, "LATEST")
    assert (said, result.exit_code) == (message + "\n", 2)


def test_hostile_names_are_shown_harmlessly(moe: Moe, outputs: Path) -> None:
    """Neither escape sequences nor markup of a copied folder reach the terminal as such."""
    hostile = outputs / "runs" / "evil\x1b[2J\x1b]0;x\x07[red]"
    stopped(outputs, PENDING, expert=2, k=1).path.rename(hostile)
    set_status(Run(hostile), FAILED, reason="bad\x1b[31m[bold]", created=time.time() - 3600)
    write_json(hostile / "tags.json", {"tags": ["t\x1b[5m", "[blink]"]})
    for words in (
        ["ls"],
        ["show", "latest"],
        ["diff", "latest", "gpt-8x2"],
        ["watch", "runs"],
        ["rm", "latest"],
        ["restore"],
        ["restore", "latest"],
        ["watch", "latest"],
        ["tag", "latest", "x"],
        ["tag", "latest", "x"],
    ):
        output = moe("runs", *words).output
        assert "[red]" in output or "[bold]" in output, words
        assert all(character.isprintable() for line in output.splitlines() for character in line), words


def test_ls_of_folders_that_are_no_runs(moe: Moe, outputs: Path) -> None:
    """Damaged run folders are listed as far as they can be read, and other files among them are ignored."""
    (outputs / "sparsity" / "notes.txt").write_text("x")
    damaged = list_runs_by_age(outputs)[0]
    for name in ("status.json", "summary.json", "config.json"):
        (damaged.path / name).write_text("{not json")
    assert [damaged.id, "sparsity", "pending"] in [line.split()[:3] for line in moe("runs", "ls").stdout.splitlines()]
    assert "config.json cannot be read" in moe("runs", "show", damaged.id).stdout
    assert moe("runs", "diff", damaged.id, "latest").exit_code == 0


def test_show_tells_what_differs_and_what_came_out(moe: Moe, outputs: Path) -> None:
    """Settings that are not the default, results with units, the curve and the load of each layer."""
    run = complete(outputs, 1.7, expert=64, k=2, optim__lr=0.01)
    with open(run.path / "metrics.jsonl", "w", encoding="utf-8") as file:
        file.writelines(json.dumps({"step": step, "val/bpb": 4 - step / 10}) + "\n" for step in (10, 20))
    with open(run.path / "routing.jsonl", "w", encoding="utf-8") as file:
        for step, load in ((10, [9, 0]), (20, [3, 1])):
            file.write(json.dumps({"step": step, "layer": 0, "tokens_per_expert": load}) + "\n")
    text = moe("runs", "show", run.id).stdout
    for part in ("expert=64", "optim.lr=0.01", "1.700 bits/byte", "3.000 █▁ 2.000", "L1 ▇▃ +50 %", "MaxVio +21 %"):
        assert part in text, part
    assert "optim.momentum" not in text
    record = json.loads(moe("runs", "show", run.id, "--json").stdout)
    assert record["curve"] == [{"step": 10, "val_bpb": 3.0}, {"step": 20, "val_bpb": 2.0}]
    assert record["tokens_per_expert"] == {"0": [3.0, 1.0]}
    assert (record["settings"]["optim.lr"], record["results"]["val_bpb"]) == (0.01, 1.7)


def test_watch_of_what_has_ended(moe: Moe, outputs: Path) -> None:
    """`moe runs watch` of an ended sweep prints a line for each run and the counts and exits with 3 after a failure."""
    result = moe("runs", "watch")
    assert result.exit_code == 3
    assert result.stdout.splitlines() == [
        "done    expert=8 seed=0   1.750 bits/byte   24.0k tok/s",
        "failed  expert=16 seed=0   out of memory.",
        "1 of 2 runs complete, 1 failed. See: moe report sparsity",
    ]
    done, failed, stopped_run = list_runs_by_age(outputs)
    codes = [moe("runs", "watch", run.id).exit_code for run in (done, failed, stopped_run)]
    assert codes == [0, 1, 1]
    assert "not running. " in moe("runs", "watch", stopped_run.id).stdout


def test_watch_of_a_complete_sweep(moe: Moe, tmp_path: Path) -> None:
    """Exit code 0; labels name what varies, and seeds."""
    sweep_of_three_seeds(tmp_path / "outputs")
    result = moe("runs", "watch", "sparsity")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == "12 of 12 runs complete. See: moe report sparsity"
    assert "done    expert=8 k=2 seed=1   1.768 bits/byte   24.0k tok/s" in result.stdout
    assert "done    expert=1 seed=0   1.830 bits/byte   24.0k tok/s" in result.stdout


@pytest.mark.parametrize("name", ["paper/mine", "paper-mine"])
def test_a_named_sweep_in_a_folder_is_found_by_every_command(moe: Moe, tmp_path: Path, name: str) -> None:
    """paper/mine and paper-mine mean the same runs in lists, reports, watch, rm and restore, also for a single run."""
    run = complete(tmp_path / "outputs", 1.7, "paper-mine", expert=8)
    complete(tmp_path / "outputs", 1.8, "other", expert=4)
    for words in (
        ["runs", "ls", name],
        ["report", name, "--runs"],
        ["runs", "watch", name],
        ["runs", "show", f"{name}/{run.id}"],
        ["report", f"{name}/{run.id[:8]}"],
        ["runs", "watch", f"{name}/{run.id}"],
        ["runs", "rm", "--sweep", name, "--yes"],
        ["runs", "restore", name],
    ):
        result = moe(*words)
        assert (0, "other" in result.stdout) == (result.exit_code, False), (words, result.output)
    assert [run.path] == [each.path for each in list_runs_by_age(tmp_path / "outputs" / "paper-mine")]


@pytest.mark.parametrize("words", [["ls"], ["show", "latest"], ["watch", "sparsity"]])
def test_looking_after_runs_imports_no_torch(outputs: Path, words: list[str]) -> None:
    """Nor, for lists, pandas: they start as quickly as a shell command should."""
    code = (
        "import sys; from moe_cli.cli.app import main\ntry:\n main()\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'pandas', 'hydra'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code, "runs", *words, "--outputs", str(outputs)]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    allowed = {"show": "['hydra']"}
    assert printed.splitlines()[-1] == allowed.get(words[0], "[]")
