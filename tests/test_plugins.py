"""Plug-ins: found by metadata alone, part of a run's identity, and never imported because of the folder of a run."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from moe_cli import plugins
from moe_cli.cli.app import app
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.identity import digest_of
from moe_cli.config.run_config_json import from_dict
from moe_cli.errors import ConfigError
from moe_cli.moe.layer import MoELayer
from moe_cli.runs.folder import Run
from tests.plugin_files import ALL_KINDS, install, leave_mark, router_source
from tests.runner import CliRunner

TINY = (
    "expert=4",
    "train.steps=2",
    "model.num_layers=1",
    "model.d_model=16",
    "model.d_ff=32",
    "model.context_length=16",
    "train.batch_size=2",
    "train.eval_tokens=64",
)


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder of sys.path, in which tests install distributions."""
    folder = tmp_path / "site"
    folder.mkdir()
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv(plugins.FILES_VARIABLE, "")
    plugins.forget()
    yield folder
    plugins.forget()


def install_router(site: Path, name: str, source: str = "", version: str = "1.0") -> None:
    entries = {"moe.routers": f"{name} = plugin_{name}:plugin"}
    install(site, source + router_source(name), module=f"plugin_{name}", entries=entries, version=version)
    plugins.forget()


def moe(*words: str) -> str:
    """Runs a command and returns what it prints, errors included."""
    done = CliRunner().invoke(app, list(words))
    return done.output + (str(done.exception) if done.exception is not None else "")


def run_of(outputs: Path) -> Run:
    return Run(next((outputs / "runs").iterdir()))


def test_a_router_of_a_plug_in_composes_with_its_own_yaml(site: Path) -> None:
    """The yaml of the plug-in gives the defaults, the bases of conf/ included; settings are checked as others are."""
    install_router(site, "own_yaml")
    config = load_config(["router=own_yaml", "router.temperature=3"]).config
    expected = {
        "name": "own_yaml",
        "power": 2.0,
        "score": "linear",
        "temperature": 3.0,
        "null_experts": 0,
        "init_scale": 1.0,
    }
    assert expected == config.to_dict()["router"]
    with pytest.raises(ConfigError, match=r"router.power=-1.* must be greater than 0"):
        load_config(["router=own_yaml", "router.power=-1"])
    assert type(config.router) is type(MoELayer(8, 4, 2, 8, router="own_yaml").router.config)


def test_a_listing_imports_nothing(site: Path, tmp_path: Path) -> None:
    """Choices, hints and completion name plug-ins by their metadata."""
    install_router(site, "only_listed", leave_mark(tmp_path / "imported"))
    assert "only_listed" in Composer().choices_with_plugins("router")
    assert "A plug-in of a test (plugin-only-listed 1.0)" in moe("config", "--groups")
    with pytest.raises(ConfigError, match="Did you mean 'only_listed'"):
        load_config(["router=only_lsted"])
    load_config(["router=switch"])
    assert not (tmp_path / "imported").exists()
    load_config(["router=only_listed"])
    assert (tmp_path / "imported").exists()


def test_a_file_cannot_take_a_built_in_name(site: Path, tmp_path: Path) -> None:
    """It would have no effect."""
    file = tmp_path / "mine.py"
    file.write_text(router_source("switch"))
    assert "has a name of the program itself" in moe("config", "router=switch", "--plugin", str(file))


def test_a_built_in_name_comes_first(site: Path, tmp_path: Path) -> None:
    install_router(site, "topk", leave_mark(tmp_path / "imported"))
    assert "plugins" not in load_config(["router=topk"]).config.to_dict()
    assert not (tmp_path / "imported").exists()


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import no_such_library\n", r"plugin-broken_a 1\.0 cannot be loaded: ModuleNotFoundError: No module"),
        ("raise SystemExit(3)\n", r"plugin-broken_b 1\.0 cannot be loaded: SystemExit: 3"),
    ],
)
def test_a_broken_plug_in_is_named_when_it_is_used(site: Path, source: str, message: str) -> None:
    """It costs those who use it, and no others."""
    name = "broken_a" if "import" in source else "broken_b"
    install_router(site, name, source)
    load_config(["router=switch"])
    with pytest.raises(ConfigError, match=message.replace("_", "-")):
        load_config([f"router={name}"])


def test_an_entry_point_must_be_a_plug_in_of_its_name(site: Path) -> None:
    source = router_source("another_name")
    install(site, source, module="plugin_misnamed", entries={"moe.routers": "misnamed = plugin_misnamed:plugin"})
    plugins.forget()
    with pytest.raises(ConfigError, match="plugin_misnamed:plugin is router=another_name, not a Plugin of that"):
        load_config(["router=misnamed"])


def test_two_distributions_of_one_name_are_refused(site: Path) -> None:
    install_router(site, "twice")
    source = router_source("twice")
    install(site, source, module="plugin_second", entries={"moe.routers": "twice = plugin_second:plugin"})
    plugins.forget()
    with pytest.raises(ConfigError, match=r"twice is in two plug-ins, plugin-\w+ 1.0 and plugin-\w+ 1.0. Uninstall"):
        load_config(["router=twice"])


def test_what_lies_in_the_working_folder_is_not_installed(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`python -m` puts the working folder on sys.path: a folder of runs from elsewhere must not bring code."""
    install_router(site, "in_here")
    monkeypatch.chdir(site)
    plugins.forget()
    assert [] == plugins.names("router")


def test_damaged_metadata_are_passed_over(site: Path) -> None:
    folder = site / "damaged-1.0.dist-info"
    folder.mkdir()
    (folder / "entry_points.txt").write_bytes(b"[moe.routers]\nfirst = \xff\xfe\n= =\n[[[\n")
    install_router(site, "undamaged")
    assert "undamaged" in plugins.names("router")


def test_version_and_distribution_are_part_of_the_identity(site: Path) -> None:
    """Another version is another run; the digest can be computed where the plug-in is not installed."""
    install_router(site, "versioned")
    first = load_config(["router=versioned"]).config
    values, digest = first.to_dict(), first.digest
    assert {"router": {"versioned": "plugin-versioned 1.0"}} == values["plugins"]
    assert first == from_dict(values)
    shutil.rmtree(site / "plugin_versioned-1.0.dist-info")
    install_router(site, "versioned", version="1.1")
    assert digest != load_config(["router=versioned"]).config.digest
    with pytest.raises(ConfigError, match="`plugins` does not record its version"):
        from_dict({key: value for key, value in values.items() if key != "plugins"})
    with pytest.raises(ConfigError, match=r"came from plugin-versioned 1.0, and here is plugin-versioned 1.1"):
        from_dict(values)
    shutil.rmtree(site / "plugin_versioned-1.1.dist-info")
    plugins.forget()
    assert digest == digest_of(values)
    with pytest.raises(ConfigError, match=r"which is not here.*pip install plugin-versioned==1.0"):
        from_dict(values)


def test_a_run_folder_imports_no_plug_in(site: Path, tmp_path: Path, text_file: Path) -> None:
    """Reports and lists of runs neither import the plug-in nor need it; what builds the model says what is missing."""
    install_router(site, "recorded", leave_mark(tmp_path / "imported"))
    outputs = str(tmp_path / "outputs")
    moe("train", *TINY, f"data.path={text_file}", "router=recorded", "--outputs", outputs)
    run = run_of(tmp_path / "outputs")
    assert {"router": {"recorded": "plugin-recorded 1.0"}} == run.meta()["plugins"]
    (tmp_path / "imported").unlink()
    sys.modules.pop("plugin_recorded")
    plugins.forget()
    reading = (["report"], ["recommend"], ["runs", "ls"], ["runs", "show", "latest"], ["runs", "experts", "latest"])
    for words in reading:
        assert run.id in moe(*words, "--outputs", outputs) or words[0] == "recommend" or words[1] == "experts"
    assert "val loss" in moe("report", "--outputs", outputs)
    assert "plug-ins     router=recorded of plugin-recorded 1.0" in moe("runs", "show", "latest", "--outputs", outputs)
    config = json.loads((run.path / "config.json").read_text())
    (run.path / "config.json").write_text(json.dumps({**config, "seed": 5}))  # of another digest than the id's
    assert "changed" in moe("report", "--outputs", outputs)
    (run.path / "config.json").write_text(json.dumps({key: value for key, value in config.items() if key != "plugins"}))
    moe("report", "--outputs", outputs)
    (run.path / "config.json").write_text(json.dumps(config))
    assert not (tmp_path / "imported").exists()
    assert "nats/token" in moe("eval", "latest", "--outputs", outputs)
    assert (tmp_path / "imported").exists()
    shutil.rmtree(site / "plugin_recorded-1.0.dist-info")
    plugins.forget()
    for words in reading:
        assert "error" not in moe(*words, "--outputs", outputs)
    for words in (["eval", "latest"], ["sample", "latest"], ["train", "--like", "latest"]):
        assert "pip install plugin-recorded==1.0" in moe(*words, "--outputs", outputs)


def test_a_file_of_ones_own(site: Path, tmp_path: Path, text_file: Path) -> None:
    """--plugin runs a file, whose content is part of the identity."""
    file, outputs = tmp_path / "mine.py", str(tmp_path / "outputs")
    file.write_text(router_source("of_file"))
    words = ["train", *TINY, f"data.path={text_file}", "router=of_file", "--plugin", str(file), "--outputs", outputs]
    printed = moe(*words)
    assert f"note: --plugin lets this command run the code of {file}." in printed
    (sample,) = [line.split() for line in printed.splitlines() if "moe sample latest" in line]
    assert ["--plugin", os.path.relpath(file)] == sample[-2:]
    run = run_of(tmp_path / "outputs")
    assert run.config_dict()["plugins"]["router"]["of_file"].startswith("mine.py sha256:")
    plugins.forget()
    file.write_text(router_source("of_file") + "# changed\n")
    assert "Give the file: --plugin mine.py" in moe("eval", "latest", "--plugin", str(file), "--outputs", outputs)


def test_a_file_must_be_given_again(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of a run names a file, and that alone never runs it."""
    file = tmp_path / "again.py"
    file.write_text(leave_mark(tmp_path / "run") + router_source("again"))
    plugins.use_files([file])
    values = load_config(["router=again"]).config.to_dict()
    (tmp_path / "run").unlink()
    monkeypatch.setenv(plugins.FILES_VARIABLE, "")
    plugins.forget()
    with pytest.raises(ConfigError, match=r"which is not here\. Give the file: --plugin again\.py"):
        from_dict(values)
    assert not (tmp_path / "run").exists()


IMPORT = "from moe_cli.plugins import Plugin\n"


@pytest.mark.parametrize(
    ("name", "source", "message"),
    [
        ("absent.py", None, "is not a Python file"),
        ("text.txt", "", "is not a Python file"),
        ("empty.py", "", "has no plug-in"),
        ("fails.py", "1 / 0", "cannot be run: ZeroDivisionError: division by zero"),
        ("wrong.py", "def", "cannot be run: SyntaxError"),
        ("number.py", f"{IMPORT}Plugin(build=3, name='one')", "build=3 is neither a class or function"),
        ("twice.py", f"{IMPORT}a = Plugin(print, name='one')\nb = Plugin(print, name='one')", "two plug-ins log=one"),
    ],
)
def test_a_wrong_file_is_an_error_in_a_line(
    site: Path, tmp_path: Path, name: str, source: str | None, message: str
) -> None:
    if source is not None:
        (tmp_path / name).write_text(source)
    assert message in moe("config", "router=unknown", "--plugin", str(tmp_path / name))


def test_help_reads_no_metadata() -> None:
    """The list of plug-ins takes 40 ms, so that only a name that is not built in is looked up."""
    code = "import sys; from moe_cli.cli.app import main; sys.argv = ['moe', '--help']\ntry: main()\n"
    code += "except SystemExit: pass\nassert 'importlib.metadata' not in sys.modules, 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_every_kind_of_plug_in_works(site: Path, tmp_path: Path, text_file: Path) -> None:
    """A model, a loss, a task, a text, a logger, a metric of one file: training, evaluation, samples, the report."""
    file, outputs = tmp_path / "kinds.py", tmp_path / "outputs"
    file.write_text(ALL_KINDS)
    options = ["--plugin", str(file), "--outputs", str(outputs)]
    settings = [
        "model=averages",
        "data=counted",
        "data.documents=30",
        "balance=spread+switch",
        "balance.spread.power=3",
        "task=look_ahead",
        "task.distance=3",
        "log=notebook",
    ]
    sizes = [word for word in TINY if "model." not in word]
    output = moe("train", *sizes, "model.context_length=16", *settings, *options)
    run = run_of(outputs)
    assert run.summary() is not None, output
    next_command = " ".join(output.split()).partition("moe train expert=1")[2]
    assert "model=averages" in next_command
    assert "data=counted" in next_command
    assert {"name": "switch+spread", "power": 3.0} == {
        "name": run.config_dict()["balance"]["name"],
        "power": run.config_dict()["balance"]["spread"]["power"],
    }
    assert {"task=look_ahead", "task.distance=3"} <= set(next_command.split())
    assert {"model", "balance", "task", "data", "log"} == run.meta()["plugins"].keys()
    assert 0.5 == run.summary()["val_accuracy"]
    assert {"numbers"} == set(run.meta()["corpus"]["domains"])
    assert {"model", "balance", "task", "data"} == run.config_dict()["plugins"].keys()
    assert "begun\ncompleted at 2\n" == (run.path / "notebook.txt").read_text()
    assert "nats/target" in moe("eval", "latest", *options)
    assert "tokens/s" in moe("sample", "latest", "--tokens", "20", *options)
    assert "switch+spread" in moe("report", "--outputs", str(outputs))
    assert "twice the loss" in moe("report", "--columns", "val_loss,doubled", *options)
    dense = moe("train", "expert=1", *sizes[1:], "model=averages", f"data.path={text_file}", *options)
    assert "moe report" in dense, dense
    assert "bert" == load_config(["data=counted", "task=masked_lm"]).config.model.name
    assert "cannot be done with data=" in moe("config", "data=counted", "task=images", "--plugin", str(file))
    listed = moe("config", "--groups", "--plugin", str(file))
    assert all(
        name in listed
        for name in (
            "model=averages",
            "data=counted",
            "balance=spread",
            "executor=one_by_one",
            "log=notebook",
            "task=look_ahead",
            "metric=doubled",
        )
    )
    assert "of the mean probabilities" in moe("config", "balance.power", "balance=spread", "--plugin", str(file))


@pytest.mark.slow
def test_a_sweep_hands_the_file_to_its_workers(site: Path, tmp_path: Path, text_file: Path) -> None:
    """Runs of a sweep in forked processes, with an executor of the same file; and a worker in a process of its own."""
    file, outputs = tmp_path / "kinds.py", tmp_path / "outputs"
    file.write_text(ALL_KINDS + router_source("swept"))
    words = [
        *TINY,
        f"data.path={text_file}",
        "router=swept,topk",
        "balance=spread",
        "executor=one_by_one",
        "--name",
        "s",
    ]
    moe("sweep", *words, "--plugin", str(file), "--outputs", str(outputs))
    runs = [Run(path) for path in (outputs / "s").iterdir() if path.is_dir()]
    assert [True, True] == [run.summary() is not None for run in runs]
    assert "made" == (outputs / "pool.txt").read_text()
    (runs[0].path / "summary.json").unlink()
    worker = [sys.executable, "-m", "moe_cli.execution.worker", str(runs[0].path), str(outputs)]
    subprocess.run(worker, check=True)
    assert runs[0].summary() is not None


def test_clusters_hand_the_file_on(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The script of Slurm names the file, also where sbatch hands on no environment; so does that of Ray's workers."""
    from moe_cli.config.executors import SlurmExecutor
    from moe_cli.sweeps.executors.ray import _environment
    from moe_cli.sweeps.executors.slurm import format_script

    file = tmp_path / "it's mine.py"
    monkeypatch.setenv(plugins.FILES_VARIABLE, str(file))
    script = format_script(SlurmExecutor(), tmp_path / "runs", tmp_path)
    command = next(line for line in script.splitlines() if line.startswith(f"export {plugins.FILES_VARIABLE}"))
    shown = subprocess.run(["sh", "-c", f"{command}; echo ${plugins.FILES_VARIABLE}"], capture_output=True, text=True)
    assert f"{file}\n" == shown.stdout
    assert str(file) == _environment(0)[plugins.FILES_VARIABLE]


def test_an_interrupted_run_resumes_with_its_plug_in(
    site: Path, tmp_path: Path, text_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """--resume needs the file again, and says so without it."""
    file, outputs = tmp_path / "mine.py", tmp_path / "outputs"
    file.write_text(router_source("resumed"))
    overrides = [*TINY, f"data.path={text_file}", "router=resumed", "--outputs", str(outputs)]
    moe("train", *overrides, "--plugin", str(file))
    run = run_of(outputs)
    (run.path / "summary.json").unlink()
    plugins.forget()
    monkeypatch.setenv(plugins.FILES_VARIABLE, "")
    assert "--plugin mine.py" in moe("train", "--resume", "latest", "--outputs", str(outputs))
    moe("train", "--resume", "latest", "--outputs", str(outputs), "--plugin", str(file))
    assert run.summary() is not None


def test_tab_runs_no_code(site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Completion offers installed plug-ins, and runs neither them nor a file in the environment."""
    from moe_cli.cli.completion import complete

    install_router(site, "completed", leave_mark(tmp_path / "imported"))
    file = tmp_path / "mine.py"
    file.write_text(leave_mark(tmp_path / "run") + router_source("in_file"))
    monkeypatch.setenv(plugins.FILES_VARIABLE, str(file))
    found = {candidate.text for candidate in complete(["train"], "router=")}
    assert {"router=completed", "router=topk"} <= found
    assert not any((tmp_path / name).exists() for name in ("imported", "run"))


def test_saved_configurations_and_own_conf_files_name_plug_ins(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A printed configuration is read again; a file of ./conf may choose the settings of a plug-in."""
    install_router(site, "saved")
    config = load_config(["router=saved", "router.power=5"]).config
    (tmp_path / "saved.yaml").write_text(yaml.safe_dump(config.to_dict()))
    assert config == load_config([str(tmp_path / "saved.yaml")]).config
    (tmp_path / "conf/router").mkdir(parents=True)
    (tmp_path / "conf/router/strong.yaml").write_text("# strong\ndefaults: [_scores, _self_]\nname: saved\npower: 9\n")
    monkeypatch.chdir(tmp_path)
    resolved = load_config(["router=strong"])
    assert ("saved", 9.0) == (resolved.config.router.name, resolved.config.router.power)
    assert "./conf is used: router/strong.yaml. To leave it out: --config-dir none" in resolved.notes


METRIC = """
from moe_cli.metrics import DERIVED, Metric
from moe_cli.plugins import Plugin


def compute(run):
    {body}


plugin = Plugin(build=compute, metric=Metric("{name}", "own", "own metric", "nats", DERIVED, -1))
"""


def install_metric(site: Path, name: str, body: str, source: str = "") -> None:
    entries = {"moe.metrics": f"{name} = metric_{name}:plugin"}
    install(site, source + METRIC.format(name=name, body=body), module=f"metric_{name}", entries=entries)
    plugins.forget()


@pytest.fixture
def table(tmp_path: Path) -> str:
    """A table of two seeds of one configuration."""
    (tmp_path / "runs.csv").write_text("expert,k,seed,loss\n4,2,0,2.0\n4,2,1,3.0\n")
    return str(tmp_path / "runs.csv")


def test_a_metric_is_imported_where_its_name_is_used(site: Path, tmp_path: Path, table: str) -> None:
    """Its values are means over seeds, in tables, exports, conditions and orders; no other report imports it."""
    install_metric(site, "squared", "return run['val_loss'] ** 2", leave_mark(tmp_path / "imported"))
    moe("report", table)
    assert "metric=squared  A plug-in of a test (metric-squared 1.0)" in moe("config", "--groups")
    assert "Did you mean 'squared'" in moe("report", table, "--columns", "sqared")
    assert not (tmp_path / "imported").exists()
    rows = json.loads(moe("report", table, "--columns", "squared", "--format", "json"))
    assert [{"squared": 6.5}] == rows
    assert (tmp_path / "imported").exists()
    assert "own" in moe("report", table, "--sort", "-squared", "--columns", "k,squared")
    assert "no run matches" in moe("report", table, "--where", "squared > 7")
    assert "no run matches" not in moe("report", table, "--where", "squared > 6")


@pytest.mark.parametrize(
    ("name", "body", "message"),
    [
        ("fails", "return 1 / 0", "metric=fails fails for the run row 1: ZeroDivisionError: division by zero"),
        ("text", "return 'much'", "metric=text of the run row 1 is 'much', neither a number nor None"),
    ],
)
def test_a_metric_that_fails_is_named(site: Path, table: str, name: str, body: str, message: str) -> None:
    install_metric(site, name, body)
    assert message in moe("report", table, "--columns", name)


def test_a_metric_of_the_program_comes_first(site: Path, tmp_path: Path, table: str) -> None:
    """A file with its name is refused, because it would have no effect."""
    install_metric(site, "val_loss", "return 1", leave_mark(tmp_path / "imported"))
    assert "2.500" in moe("report", table, "--columns", "val_loss")
    assert not (tmp_path / "imported").exists()
    file = tmp_path / "mine.py"
    file.write_text(METRIC.format(name="val_loss", body="return 1"))
    refused = moe("report", table, "--columns", "val_loss", "--plugin", str(file))
    assert "metric=val_loss of --plugin" in refused
    assert "has a name of the program itself" in refused


def test_a_task_chooses_the_model_of_its_kind(site: Path, tmp_path: Path) -> None:
    """A task that is like masked_lm is done with bert; data and model that do not fit it are refused."""
    file = tmp_path / "kinds.py"
    file.write_text(ALL_KINDS.replace("class Ahead(PluginTask):", 'class Ahead(PluginTask):\n    like = "masked_lm"'))
    plugins.use_files([file])
    assert "bert" == load_config(["task=look_ahead", "data.path=."]).config.model.name
    assert "cannot be done with data=digits" in moe("config", "task=look_ahead", "data=digits")
    assert "cannot do task=look_ahead" in moe("config", "task=look_ahead", "model=gpt")
    assert "causal_lm" == load_config(["data.path=."]).config.task.name


@pytest.mark.parametrize("is_file", [True, False])
def test_a_router_that_raises_is_named(site: Path, tmp_path: Path, text_file: Path, is_file: bool) -> None:
    """Training and evaluation print three lines at most; the run folder has the whole traceback."""
    name, outputs = f"raises_{is_file}".lower(), str(tmp_path / "outputs")
    source = router_source(name)
    options = ["--outputs", outputs]
    if is_file:
        (tmp_path / "mine.py").write_text(source)
        options += ["--plugin", str(tmp_path / "mine.py")]
    else:
        install_router(site, name, source)
    settings = [*TINY, f"data.path={text_file}", f"router={name}"]
    broken = "            if self.config.power == 5:\n                raise KeyError('own fault')\n"
    file = tmp_path / "mine.py" if is_file else site / f"plugin_{name}.py"
    file.write_text(source.replace("            logits, probs", f"{broken}            logits, probs"))
    plugins.forget()
    sys.modules.pop(f"plugin_{name}", None)
    done = CliRunner().invoke(app, ["train", *settings, "router.power=5", *options])
    lines = [line for line in done.stderr.splitlines() if "note:" not in line]
    origin = f"--plugin {file}" if is_file else f"router={name} of plugin-{name.replace('_', '-')} 1.0"
    assert 1 == done.exit_code
    assert f"{origin} fails: KeyError" in done.stderr
    assert f"in {file.name}, line" in done.stderr
    assert len([line for line in lines if line.strip()]) <= 3
    run = run_of(tmp_path / "outputs")
    assert "Traceback" in (run.path / "traceback.txt").read_text()
    assert "raise KeyError('own fault')" in (run.path / "traceback.txt").read_text()


def test_a_logger_that_is_not_installed_does_not_block_an_evaluation(
    site: Path, tmp_path: Path, text_file: Path
) -> None:
    """It matters to training alone, which names it."""
    source = "from moe_cli.plugins import Plugin\nclass Silent:\n    def __init__(self, context): pass\n"
    source += "    def start(self, past): pass\n    def metrics(self, record): pass\n"
    source += "    def finish(self, status, step, summary): pass\nplugin = Plugin(name='silent', build=Silent)\n"
    install(site, source, module="plugin_silent", entries={"moe.loggers": "silent = plugin_silent:plugin"})
    plugins.forget()
    outputs = ["--outputs", str(tmp_path / "outputs")]
    moe("train", *TINY, f"data.path={text_file}", "log=silent", *outputs)
    run = run_of(tmp_path / "outputs")
    shutil.rmtree(site / "plugin_silent-1.0.dist-info")
    plugins.forget()
    assert "nats/token" in moe("eval", "latest", *outputs)
    assert "silent" == run.config().log
    (run.path / "summary.json").unlink()
    assert "no logger 'silent'" in moe("train", "--resume", "latest", *outputs)
