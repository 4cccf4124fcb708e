"""MLflow's store, read with its own client, holds what metrics.jsonl holds."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.ranges import format_setting
from moe_cli.files.reading import read_json
from moe_cli.files.writing import write_json
from moe_cli.loggers.logger import RunContext
from moe_cli.runs.folder import FAILED, INTERRUPTED, Run
from moe_cli.runs.lookup import list_runs_by_age
from tests.loggers.runs import Points, begin, go_on, logged_config, points, tell
from tests.tiny import finish

# What MLflow's own code causes in its libraries.
pytestmark = [pytest.mark.filterwarnings("ignore"), pytest.mark.usefixtures("nothing_set")]


@pytest.fixture
def nothing_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Makes one outputs folder for all tests of this file: making the tables takes a second."""
    return tmp_path_factory.mktemp("outputs")


@pytest.fixture(scope="module")
def trained(text_file: Path, outputs: Path) -> Run:
    run: Run = finish(logged_config(text_file, "mlflow", train={"eval_every": 2}), outputs)
    return run


def client(outputs: Path) -> Any:
    """MLflow's own client. The library is imported here, as it takes seconds."""
    import moe_cli.loggers.mlflow  # noqa: F401  (sets what MLflow reads at import)

    from mlflow.tracking import MlflowClient  # isort: skip

    return MlflowClient(tracking_uri=f"sqlite:///{outputs / 'mlflow.db'}")


def called(run: Run) -> str:
    return str((read_json(run.path / "loggers.json") or {})["mlflow"])


def curves(run: Run, outputs: Path) -> Points:
    """All points MLflow has, in the order of their steps, without the results at the end."""
    reader, run_id = client(outputs), called(run)
    return {
        key: sorted((point.step, point.value) for point in reader.get_metric_history(run_id, key))
        for key in reader.get_run(run_id).data.metrics
        if not key.startswith("summary/")
    }


@pytest.mark.slow
def test_every_value_is_that_of_the_metrics_file(trained: Run, outputs: Path) -> None:
    """The same names, steps and values, to the last digit; a value that two records of a step have is there once."""
    assert len(points(trained)) > 20
    assert {key: sorted(set(values)) for key, values in points(trained).items()} == curves(trained, outputs)


def test_settings_results_and_tags(trained: Run, outputs: Path) -> None:
    """Settings are params as they are typed, numbers of the summary metrics, its words tags; the run has finished."""
    found = client(outputs).get_run(called(trained))
    summary = trained.summary() or {}
    settings = RunContext(trained, trained.config(), outputs).settings()
    assert {key: format_setting(value) for key, value in settings.items()} == found.data.params
    assert {f"summary/{key}": value for key, value in summary.items() if isinstance(value, int | float)} == {
        key: value for key, value in found.data.metrics.items() if key.startswith("summary/")
    }
    assert ("runs", str(trained.path), summary["corpus"]) == tuple(
        found.data.tags[f"moe.{key}"] for key in ("sweep", "folder", "corpus")
    )
    assert ("FINISHED", trained.id) == (found.info.status, found.info.run_name)
    assert "moe" == client(outputs).get_experiment(found.info.experiment_id).name


@pytest.mark.parametrize(("status", "said"), [(FAILED, "FAILED"), (INTERRUPTED, "KILLED")])
def test_a_run_that_goes_on_is_the_same_run_there(text_file: Path, outputs: Path, status: str, said: str) -> None:
    """Steps that are done again keep the point they had; none is there twice, and none is missing."""
    run, recorder = begin(logged_config(text_file, "mlflow"), outputs)
    tell(recorder, 1, 2, 3, 4, 5)
    recorder.status(status)
    first = called(run)
    assert said == client(outputs).get_run(first).info.status
    recorder = go_on(run, outputs, 2)
    assert "RUNNING" == client(outputs).get_run(first).info.status
    tell(recorder, 3, 4, 5, 6, 7)
    recorder.complete({"val_loss": 0.5})
    assert first == called(run)
    assert points(run) == curves(run, outputs)


def test_what_a_kill_kept_back_is_sent_later(text_file: Path, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Points wait for up to a second; after a kill those of before the checkpoint come with the next start."""
    monkeypatch.setattr("moe_cli.loggers.mlflow.SECONDS", 1e9)
    run, recorder = begin(logged_config(text_file, "mlflow"), outputs)
    tell(recorder, 1, 2, 3)
    assert {} == {key: curve for key, curve in curves(run, outputs).items() if len(curve) == 3}
    recorder = go_on(run, outputs, 2)
    tell(recorder, 3, 4)
    recorder.status(INTERRUPTED)
    assert points(run) == curves(run, outputs)


def test_going_back_within_a_run_keeps_the_first_points(text_file: Path, outputs: Path) -> None:
    """With train.on_nan=rewind: one point a step, the first; what is new follows."""
    run, recorder = begin(logged_config(text_file, "mlflow"), outputs)
    tell(recorder, 1, 2, 3)
    recorder.rewind(1)
    tell(recorder, 2, 3, 4, value=10.0)
    recorder.status(INTERRUPTED)
    assert [(1, 1.0), (2, 0.5), (3, 1 / 3), (4, 10.25)] == curves(run, outputs)["train/loss"]


@pytest.mark.parametrize("lost", ["deleted", "unknown"])
def test_a_run_that_is_gone_there_is_made_again(text_file: Path, outputs: Path, lost: str) -> None:
    """Deleted in MLflow, or of another store: a new one holds all there is so far."""
    run, recorder = begin(logged_config(text_file, "mlflow"), outputs)
    tell(recorder, 1, 2)
    recorder.status(INTERRUPTED)
    first = called(run)
    if lost == "deleted":
        client(outputs).delete_run(first)
    else:
        write_json(run.path / "loggers.json", {"mlflow": "0" * 32})
    recorder = go_on(run, outputs, 2)
    tell(recorder, 3)
    recorder.status(INTERRUPTED)
    assert called(run) not in (first, "0" * 32)
    assert points(run) == curves(run, outputs)


def test_the_user_says_where_and_under_which_name(
    text_file: Path, outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """MLFLOW_TRACKING_URI and MLFLOW_EXPERIMENT_NAME hold; log_project goes before the latter."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{outputs / 'mlflow.db'}")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "theirs")
    for project, expected in ((None, "theirs"), ("ours", "ours")):
        run, recorder = begin(logged_config(text_file, "mlflow", log_project=project), tmp_path)
        tell(recorder, 1)
        recorder.status(INTERRUPTED)
        found = client(outputs).get_run(called(run))
        assert expected == client(outputs).get_experiment(found.info.experiment_id).name
    assert not (tmp_path / "mlflow.db").exists()


@pytest.mark.slow
def test_runs_that_start_at_once_share_a_new_store(text_file: Path, tmp_path: Path) -> None:
    """Three processes at a store that none has made yet: none fails, and each run is there."""
    code = (
        "import sys; from pathlib import Path; from tests.loggers.runs import begin, logged_config, tell\n"
        "text, outputs, seed = sys.argv[1:]\n"
        "run, recorder = begin(logged_config(Path(text), 'mlflow', seed=int(seed)), Path(outputs))\n"
        "tell(recorder, *range(1, 30)); recorder.complete({'val_loss': 1.0})"
    )
    words = [[sys.executable, "-c", code, str(text_file), str(tmp_path), str(seed)] for seed in range(3)]
    started = [subprocess.Popen(each, stderr=subprocess.PIPE, text=True) for each in words]
    assert ["", "", ""] == [process.communicate(timeout=300)[1] for process in started]
    runs = list_runs_by_age(tmp_path)
    assert 3 == len(runs)
    for run in runs:
        assert points(run) == curves(run, tmp_path)


@pytest.mark.parametrize("name", ["mlflow.db", "mlflow.db-journal", ".mlflow.lock"])
def test_a_store_that_is_a_link_is_left_alone(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    """Nothing is written through it; the run goes on without MLflow."""
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / name).symlink_to(tmp_path / "elsewhere")
    run, recorder = begin(logged_config(text_file, "mlflow"), tmp_path / "outputs")
    tell(recorder, 1, 2)
    assert f"{tmp_path / 'outputs' / name} is a link" in "".join(capsys.readouterr())
    assert (["outputs"], 3) == (sorted(path.name for path in tmp_path.iterdir()), len(run.metrics()))


def test_a_report_is_an_artifact(trained: Run, outputs: Path, tmp_path: Path) -> None:
    """Without -o it has the page and the tables; with -o those files. The experiment is that of the runs."""
    import json

    from moe_cli.cli.app import app
    from tests.runner import CliRunner

    words = ["report", "--outputs", str(outputs), "--to", "mlflow"]
    done = CliRunner().invoke(app, words)
    assert 0 == done.exit_code, done.output
    assert "report.html, report.csv, report.json sent to MLflow: experiment moe" in done.stdout
    CliRunner().invoke(app, [*words, "-o", str(tmp_path / "mine.md")])
    reader = client(outputs)
    experiment = reader.get_experiment_by_name("moe").experiment_id
    runs = reader.search_runs(experiment, "tags.`moe.report` != ''", order_by=["attributes.start_time"])
    assert ["FINISHED"] * 2 == [run.info.status for run in runs]
    kept = [sorted(file.path for file in reader.list_artifacts(run.info.run_id)) for run in runs]
    assert [["report.csv", "report.html", "report.json"], ["mine.md"]] == kept
    path = reader.download_artifacts(runs[0].info.run_id, "report.json", str(tmp_path))
    assert trained.id in Path(path).read_text()
    assert json.loads(Path(path).read_text())


def test_what_keeps_no_files_is_refused() -> None:
    from moe_cli.cli.app import app
    from tests.runner import CliRunner

    for words, message in (
        (["--to", "tensorboard"], "--to tensorboard: a report is kept by a tracker that keeps files: mlflow, wandb"),
        (["--to", "mlflow", "--format", "csv"], "--to sends files"),
    ):
        done = CliRunner().invoke(app, ["report", *words])
        assert (2, True) == (done.exit_code, message in done.stderr)
