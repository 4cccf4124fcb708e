"""log= and log_project=: what they may be, and that they are no part of a run's identity."""

import pytest

from moe_cli.config.compose import execution_settings, load_config, with_execution_settings
from moe_cli.config.loggers import loggers_of
from moe_cli.config.overrides import parse_overrides
from moe_cli.errors import ConfigError

PLACES = "There are: tensorboard, mlflow, wandb, trackio; several as tensorboard+mlflow."


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("log=tensorbord", f"log=tensorbord: no logger 'tensorbord'. Did you mean 'tensorboard'? {PLACES}"),
        ("log=mlflow+", f"log=mlflow+: no logger ''. {PLACES}"),
        ("log=mlflow+mlflow", "log=mlflow+mlflow names a logger twice."),
        (
            "log=tensorboard,mlflow",
            "'log=tensorboard,mlflow' would log one run twice. Several loggers are: log=tensorboard+mlflow",
        ),
        (
            "log_project=x",
            "log_project=x is for mlflow, wandb, trackio, and log=null has none of them. "
            "Leave it out (log_project=null), or add: log=mlflow",
        ),
        (
            "log=tensorboard log_project=x",
            "log_project=x is for mlflow, wandb, trackio, and log=tensorboard has none of "
            "them. Leave it out (log_project=null), or add: log=mlflow",
        ),
        ("log=mlflow log_project=''", "log_project is empty. Give a name, or null for: moe"),
    ],
)
def test_what_cannot_be_is_refused(words: str, message: str) -> None:
    """One line each: what is wrong, and what to write."""
    with pytest.raises(ConfigError) as error:
        load_config(words.split(" "))
    assert message == str(error.value)


def test_several_loggers_are_one_value() -> None:
    """In the order of their naming; none is none."""
    assert ("tensorboard", "mlflow") == loggers_of(load_config(["log=tensorboard+mlflow"]).config.log)
    assert () == loggers_of(None)
    assert ("tensorboard+mlflow",) == parse_overrides(["log=tensorboard+mlflow"])[0].values


def test_a_run_keeps_its_name_with_every_logger() -> None:
    """Loggers are no part of a run's id, and a resumed run can take other loggers."""
    plain = load_config([]).config
    logged = load_config(["log=mlflow", "log_project=x"]).config
    assert plain.run_id == logged.run_id
    assert logged == with_execution_settings(plain, execution_settings(["log=mlflow", "log_project=x"]))
