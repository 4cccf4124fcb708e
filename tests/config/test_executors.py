"""The executor of a sweep comes from files and words, and wrong settings are refused."""

from pathlib import Path

import pytest
import yaml

from moe_cli.cli.app import app
from moe_cli.config.compose import Composer
from moe_cli.config.executors import LocalExecutor, RayExecutor, SlurmExecutor, load_executor
from moe_cli.config.settings import packaged_conf
from moe_cli.errors import ConfigError
from moe_cli.sweeps.plan import plan_sweep
from tests.runner import CliRunner


def test_words_and_option_name_it() -> None:
    """Nothing said is this machine; --executor and executor= are alike; words set what the file holds."""
    assert LocalExecutor() == load_executor([])
    assert (
        RayExecutor(cpus=4)
        == load_executor(["executor.cpus=4"], "ray")
        == load_executor(["executor=ray", "executor.cpus=4"])
    )
    words = ["executor.time=90", 'executor.setup=["module load x","y"]', "executor.mem=16G"]
    assert SlurmExecutor(time="90", setup=("module load x", "y"), mem="16G") == load_executor(words, "slurm")


@pytest.mark.parametrize("executor", [LocalExecutor(), RayExecutor(), SlurmExecutor()], ids=lambda each: each.name)
def test_files_hold_every_setting_at_its_default(executor: LocalExecutor | RayExecutor | SlurmExecutor) -> None:
    """conf/executor/NAME.yaml shows all there is to set, and says what the executor is for."""
    file = packaged_conf() / "executor" / f"{executor.name}.yaml"
    settings = {
        key: tuple(value) if isinstance(value, list) else value
        for key, value in yaml.safe_load(file.read_text()).items()
    }
    assert vars(executor) == settings
    assert Composer().describe("executor", executor.name)


def test_a_file_of_ones_own(tmp_path: Path) -> None:
    """An executor file needs only the settings that differ, and its name is a choice like the packaged ones."""
    (tmp_path / "executor").mkdir()
    (tmp_path / "executor" / "ours.yaml").write_text("# ours\nname: slurm\npartition: gpu\n")
    assert SlurmExecutor(partition="gpu", cpus=8) == load_executor(["executor.cpus=8"], "ours", tmp_path)
    (tmp_path / "executor" / "odd.yaml").write_text("name: kubernetes\n")
    with pytest.raises(ConfigError, match=r"odd.yaml must hold 'name: local'"):
        load_executor([], "odd", tmp_path)


@pytest.mark.parametrize(
    ("words", "name", "said"),
    [
        (["executor=ra"], None, "no executor 'ra'. Did you mean 'ray'? There are: local, ray, slurm."),
        (["executor=ray"], "slurm", "executor=ray and --executor slurm both name an executor: give one."),
        (["executor=ray,slurm"], None, "executor has several values here; a sweep has one executor."),
        (["executor.cpus=4"], None, "no setting 'executor.cpus' with executor=local. It belongs to executor=ray."),
        (["executor.qos=x"], "ray", "no setting 'executor.qos' with executor=ray. It belongs to executor=slurm."),
        (["executor.cpu=1"], "ray", "no setting 'executor.cpu' with executor=ray. Did you mean 'cpus'?"),
        (["executor.name=x"], "ray", "'executor.name' follows from the choice. Write: executor=x"),
        (["executor.cpus=two"], "slurm", "executor.cpus=two is not a whole number."),
        (["executor.gpus=1.5"], "ray", "executor.gpus=1.5 must be a fraction of one GPU or a whole number."),
        (
            ["executor.address=here"],
            "ray",
            "executor.address=here is not null, auto or HOST:PORT, such as 10.0.0.1:6379.",
        ),
        (
            ["executor.gpus=1", "executor.gres=gpu:1"],
            "slurm",
            "executor.gpus=1 and executor.gres=gpu:1 both choose GPUs: give one.",
        ),
        (
            ["executor.time=soon"],
            "slurm",
            "executor.time=soon is not a time: minutes, or H:MM:SS, or D-HH:MM:SS, in quotes.",
        ),
        (["executor.mem=lots"], "slurm", "executor.mem=lots is not an amount of memory, such as 16G."),
        (
            ["executor.setup={a:1}"],
            "slurm",
            "executor.setup={'a': '1'} is not a list of text. Write: 'executor.setup=[\"first\",\"second\"]'",
        ),
    ],
)
def test_what_cannot_be_is_refused(words: list[str], name: str | None, said: str) -> None:
    """One line that says what is wrong and what to do."""
    with pytest.raises(ConfigError) as error:
        load_executor(words, name)
    assert said == str(error.value).replace("-1.0", "-1")


@pytest.mark.parametrize("word", ["executor=ray", "executor.cpus=4"])
def test_it_is_no_part_of_a_run(word: str) -> None:
    """moe train says where it belongs; a sweep's points do not know it."""
    result = CliRunner().invoke(app, ["train", word])
    assert (2, True) == (result.exit_code, "not of a run. Use it with: moe sweep" in result.output)
    with pytest.raises(ConfigError):
        plan_sweep(["expert=1,4", "k=1", word])
