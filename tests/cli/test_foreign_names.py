"""Words of Hydra, of papers and of other libraries get one line: why they do not exist here, and what to type."""

from pathlib import Path

import pytest

from moe_cli.cli.app import app
from moe_cli.config.build import names_of
from moe_cli.config.folders import GROUPS
from moe_cli.config.foreign_names import HYDRA_OPTIONS, OTHER_NAMES, SHORT_OPTIONS
from moe_cli.config.schema import RunConfig
from tests.runner import CliRunner

ADDED = "every setting exists already, so none is added with +. Write:"
SWEEP = "is Hydra's: several values are a command of their own. Type: moe sweep expert=1,8"
CONFIG = "is Hydra's: the configuration is printed by a command. Type: moe config SETTING=VALUE"
FOLDER = "is Hydra's: your own files are added to the packaged ones. Type: --config-dir DIR"
BUDGETS = "train.steps, or train.tokens, train.flops or train.minutes."
# The words after each command that takes settings, and the error.
HINTS = {
    "+expert=8": f"'+expert=8': {ADDED} expert=8",
    "++optim.lr=0.1": f"'++optim.lr=0.1': {ADDED} optim.lr=0.1",
    "+foo=1": "'+foo=1': no setting can be added with +, and there is no setting 'foo'. All settings: moe config",
    "~balance": "'~balance': no setting can be removed. Write: balance=none",
    "~experiment": "'~experiment': no setting can be removed. Leave experiment=NAME out.",
    "~model.dropout": "'~model.dropout': no setting can be removed. Give it another value: model.dropout=VALUE",
    "-m expert=1,8": f"-m {SWEEP}",
    "-m expert=1,2 k=1": f"-m {SWEEP.replace('expert=1,8', 'expert=1,2 k=1')}",
    "+experiment=mixtral": f"'+experiment=mixtral': {ADDED} experiment=published/mixtral_8x7b",
    "--multirun": f"--multirun {SWEEP}",
    "--cfg job": f"--cfg {CONFIG}",
    "-c job": f"-c {CONFIG}",
    "--info": "--info is Hydra's: choices and settings are listed by a command. "
    "Type: moe config --groups, or moe config",
    "--resolve": "--resolve is Hydra's: moe config prints every setting resolved. Type: moe config SETTING=VALUE",
    "--config-name mine": "--config-name is Hydra's: there is one config.yaml. "
    "Choose a file of conf/experiment: experiment=NAME",
    "--config-path=conf": f"--config-path {FOLDER}",
    "-cp conf": f"-cp {FOLDER}",
    "hydra.run.dir=x": "'hydra.run.dir=x': the folder of runs is an option. Type: --outputs DIR",
    "hydra/launcher=slurm": "'hydra/launcher=slurm': runs of a sweep are carried out by an executor. "
    "Type: moe sweep --executor slurm",
    "hydra.verbose=true": "'hydra.verbose=true': the words follow Hydra's grammar, but Hydra's runtime is not used. "
    "Leave it out",
    "router@model.router=topk": "'router@model.router=topk': a group has one place in the configuration. "
    "Write: router=topk",
    "experiment=[a,b]": "'experiment=[a,b]': experiment takes one choice. Compare them: moe sweep experiment=a,b",
    "balance=[switch,z]": "'balance=[switch,z]': balance takes one choice. Combine them: balance=switch+z. "
    "Compare them: moe sweep balance=switch,z",
    "sweep=sparsity": "'sweep=sparsity': a sweep is not part of a run. Type: moe sweep sparsity",
    "top_k=2": "no setting 'top_k'. Here it is 'k'.",
    "num_experts=8": "no setting 'num_experts'. Here it is 'expert'.",
    "num_experts_per_tok=2": "no setting 'num_experts_per_tok'. Here it is 'k'.",
    "router_aux_loss_coef=0.01": "no setting 'router_aux_loss_coef'. Here it is 'balance.weight'.",
    "n_layer=4": "no setting 'n_layer'. Here it is 'model.num_layers'.",
    "optim.learning_rate=1": "no setting 'optim.learning_rate'. Here it is 'optim.lr'.",
    "epochs=3": f"no setting 'epochs'. Here it is {BUDGETS}",
    "train.epochs=3": f"no setting 'train.epochs'. Here it is {BUDGETS}",
    "train.seed=1": "no setting 'train.seed'. Did you mean 'seed'?",
    "model.heads=2": "no setting 'model.heads'. Did you mean 'model.num_heads'?",
    "model.layers=2": "no setting 'model.layers'. Here it is 'model.num_layers'.",
    "model.dmodel=2": "no setting 'model.dmodel'. Did you mean 'model.d_model'?",
    "balance.weigth=1": "no setting 'balance.weigth'. Did you mean 'balance.weight'?",
    "model.moe_every=2": "no setting 'model.moe_every'. Here it is 'model.moe_layer_freq'.",
    "exprt=8": "no setting 'exprt'. Did you mean 'expert'?",
    "--expert 8": "no option --expert. Settings have no dashes: expert=8",
    "--lr=0.1": "no option --lr. Settings have no dashes: optim.lr=0.1",
    "--top-k 2": "no option --top-k. Settings have no dashes: k=2",
}


@pytest.mark.parametrize("command", ["train", "sweep", "config", "plan"])
def test_a_habit_gets_a_line(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each command that takes settings answers with the line of the table and exit code 2."""
    monkeypatch.chdir(tmp_path)
    # The commands share what reads settings: beyond the first, a fifth of the table shows that they use it.
    hints = dict(list(HINTS.items())[:: 1 if command == "train" else 5])
    results = {words: CliRunner().invoke(app, [command, *words.split()]) for words in hints}
    assert {words: f"error: {text}" for words, text in hints.items()} == {
        words: result.stderr.strip() for words, result in results.items()
    }
    assert {2} == {result.exit_code for result in results.values()}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("report --recommend", "no option --recommend here. A configuration is chosen by a command of its own: moe"),
        ("recommend --html x.html", "no option --html here. A page is written by: moe report -o FILE.html"),
        ("recommend --foo", "No such option: --foo\nSee: "),
        ("train data=own.txt", "data=own.txt: no such choice. To read own text: data.path=own.txt"),
    ],
)
def test_what_belongs_elsewhere_is_named(
    words: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An option of another command, an unknown one, and a file of text in place of a choice."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.txt").write_text("text")
    result = CliRunner().invoke(app, words.split())
    assert 2 == result.exit_code
    assert result.stderr.startswith(f"error: {says}")


def test_every_other_name_means_a_setting() -> None:
    """A name of a paper or of another library leads to settings and groups that exist."""
    known = {*names_of(RunConfig), *GROUPS, "log=wandb", "an", "a"}
    # Of a combined balance, each method has a setting of its own.
    known.add("balance.z.weight")
    assert set() == {name.split(" ")[0].rstrip(",") for name in OTHER_NAMES.values()} - known


def test_hydras_options_are_not_ours() -> None:
    """No command has an option of the table, which would then never be answered."""
    from moe_cli.cli.completion import program

    ours = {option for command in program()["commands"].values() for option in command["options"]}
    assert set() == ours & {*HYDRA_OPTIONS, *SHORT_OPTIONS}


def test_home_folders_are_expanded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell leaves `data.path=~/notes.txt` as it is; the program puts the home folder in."""
    monkeypatch.setenv("HOME", str(tmp_path))
    result = CliRunner().invoke(app, ["train", "data=text", "data.path=~/notes.txt"])
    assert f"error: data.path={tmp_path}/notes.txt does not exist." == result.stderr.strip()
