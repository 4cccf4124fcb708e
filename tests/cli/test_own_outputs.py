"""Commands that work in the folder their data lie in: what they write there is never read as data."""

import json
from pathlib import Path

import pytest

from moe_cli.errors import DataError
from moe_cli.execution.run import run_one
from moe_cli.runs.folder import open_or_create_run
from moe_cli.runs.lookup import find_run, list_runs_by_age
from tests.cli.conftest import ONCE, TINY, Moe
from tests.tiny import words

HERE = ("data=text", "data.path=.", "expert=4", "k=2", *TINY, ONCE, "train.steps=2")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working directory, with two texts in it."""
    for number, name in enumerate(("a.txt", "b.txt")):
        (tmp_path / name).write_text(words(4000, number))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_commands_go_on_in_the_folder_of_their_data(folder: Path, moe: Moe, monkeypatch: pytest.MonkeyPatch) -> None:
    """Train twice, evaluate, sample, resume and sweep: all see the two texts and nothing else, whatever outputs are called."""
    name = "results"
    monkeypatch.setenv("MOE_OUTPUTS", name)
    for seed in range(2):
        result = moe("train", *HERE, f"seed={seed}")
        assert result.exit_code == 0, result.output
    assert f"left out as outputs of moe: {name}" in result.output
    run = find_run(folder / name, "latest")
    for command in (["eval", "latest"], ["sample", "latest", "--tokens", "5"]):
        result = moe(*command)
        assert result.exit_code == 0, result.output
    (run.path / "summary.json").unlink()
    result = moe("train", "--resume", "latest")
    assert result.exit_code == 0, result.output
    result = moe("sweep", *HERE, "k=1,2", "-j", 1)
    assert result.exit_code == 0, result.output
    runs = list_runs_by_age(folder / name)
    assert 4 == len(runs)
    assert 1 == len({(each.summary() or {})["corpus_sha256"] for each in runs})
    assert {2} == {each.meta()["corpus"]["num_documents"] for each in runs}


def test_other_outputs_are_no_data_either(folder: Path, moe: Moe) -> None:
    """Those of another --outputs, and a run that was copied next to the texts."""
    assert 0 == moe("train", *HERE, "--outputs", "first").exit_code
    run = find_run(folder / "first", "latest")
    run.path.rename(folder / "kept")
    result = moe("train", *HERE, "--outputs", "second")
    assert result.exit_code == 0, result.output
    assert "left out as outputs of moe: first, kept" in result.output
    runs = [*list_runs_by_age(folder / "kept"), *list_runs_by_age(folder / "second")]
    assert [1, 1] == [len({(each.summary() or {})["corpus_sha256"] for each in runs}), len(runs) - 1]


@pytest.mark.parametrize("path", [".", "*.txt"])
def test_outputs_around_the_data_are_refused(folder: Path, moe: Moe, path: str) -> None:
    """The outputs folder itself is no data path; a file in it that is named is."""
    result = moe("train", *HERE, f"data.path={path}", "--outputs", ".")
    assert 2 == result.exit_code
    assert f"data.path={folder / path if path != '.' else folder}" in result.stderr
    assert "outputs of moe are not data" in result.stderr
    result = moe("train", *HERE, "data.path=a.txt", "--outputs", ".")
    assert result.exit_code == 0, result.output


def test_the_data_of_a_sweep_are_fixed(folder: Path, moe: Moe) -> None:
    """A sweep does not go on with other data, unless all of it runs again; nor does a single run of it."""
    outputs = folder / "outputs"
    assert 0 == moe("sweep", *HERE, "k=1,2", "-j", 1).exit_code
    (folder / "a.txt").write_text(words(4000, 7))
    result = moe("sweep", *HERE, "k=1,2", "-j", 1)  # nothing is left to do
    assert result.exit_code == 0, result.output
    result = moe("sweep", *HERE, "k=1,2,4", "-j", 1)
    assert 2 == result.exit_code
    assert f"data.path={folder} has changed since the sweep 'sweep' started" in result.stderr
    assert "--force" in result.stderr
    assert len(result.stderr.splitlines()) <= 3
    assert 2 == len(list_runs_by_age(outputs))
    run = open_or_create_run(outputs, "sweep", find_run(outputs, "latest").config())
    run = open_or_create_run(outputs, "sweep", run.config().__class__(**{**vars(run.config()), "seed": 5}))
    with pytest.raises(DataError, match="has changed since the sweep 'sweep' started"):
        run_one(run, outputs)
    assert "failed" == run.status()["status"]
    result = moe("sweep", *HERE, "k=1,2,4", "-j", 1, "--force")
    assert result.exit_code == 0, result.output
    done = [each for each in list_runs_by_age(outputs) if each.summary()]
    assert 3 == len(done)
    assert 1 == len({(each.summary() or {})["corpus_sha256"] for each in done})


def test_settings_that_read_the_same_text_share_its_hash(folder: Path, moe: Moe) -> None:
    """Tokenizers and shares for validation do not make other data of a text; another path does."""
    result = moe("sweep", *HERE, "data.tokenizer=bytes,chars", "data.val_fraction=0.1,0.2", "-j", 1)
    assert result.exit_code == 0, result.output
    noted = json.loads((folder / "outputs" / "sweep" / "corpora.json").read_text())
    assert 1 == len(noted)
    assert list(noted.values()) == [(find_run(folder / "outputs", "latest").summary() or {})["corpus_sha256"]]


def test_a_search_fixes_its_data(folder: Path, moe: Moe) -> None:
    """As a sweep does: it does not go on with other data."""
    pytest.importorskip("optuna")
    search = ("sweep", *HERE, "optim.lr=interval(0.01,0.02)", "--sampler", "random", "-j", 1, "--trials")
    assert 0 == moe(*search, 1).exit_code
    assert 0 == moe(*search, 2).exit_code
    (folder / "c.txt").write_text(words(4000, 7))
    result = moe(*search, 3)
    assert 2 == result.exit_code
    assert "has changed since the sweep 'search' started" in result.stderr


def test_excluded_data_stay_so_in_the_commands_that_are_offered(folder: Path, moe: Moe) -> None:
    """data.exclude is part of a run's configuration, of its resumption and of the dense run that is proposed."""
    result = moe("train", *HERE, "data.exclude=[b*,*.log]")
    assert result.exit_code == 0, result.output
    run = find_run(folder / "outputs", "latest")
    assert 1 == run.meta()["corpus"]["num_documents"]
    assert ("*.log", "b*") == run.config().data.exclude  # type: ignore[union-attr]
    for piece in ("left out by data.exclude: b.txt", "data.exclude=*.log leaves nothing out", "data.exclude=["):
        assert piece in result.stdout
    result = moe("train", "expert=1", "data=text", "data.path=.", *TINY, ONCE, "data.exclude=['b*', '*.log']")
    assert result.exit_code == 0, result.output
    shas = {(each.summary() or {})["corpus_sha256"] for each in list_runs_by_age(folder / "outputs")}
    assert 1 == len(shas)
    assert 0 == moe("report").exit_code
