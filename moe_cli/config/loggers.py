"""Additional loggers of metrics: `log=tensorboard+mlflow`. These settings do not affect the trained model."""

from moe_cli.config.build import did_you_mean
from moe_cli.config.ranges import format_setting
from moe_cli.errors import ConfigError
from moe_cli.plugins import names as plugin_names
from moe_cli.plugins import origin_of

LOGGERS = ("tensorboard", "mlflow", "wandb", "trackio")
# Those that sort runs into projects; MLflow says experiment.
WITH_PROJECTS = ("mlflow", "wandb", "trackio")
LOG_KEYS = ("log", "log_project")


def names_in(log: str | None) -> tuple[str, ...]:
    """Returns the names in `log`, one or several: a+b. Raises ConfigError if one is repeated."""
    names = tuple(log.split("+")) if log is not None else ()
    if len(set(names)) < len(names):
        raise ConfigError(f"log={log} names a logger twice.")
    return names


def loggers_of(log: str | None) -> tuple[str, ...]:
    """Returns the names in `log`. Each must exist.

    A saved configuration may name a plug-in that is not installed here: only a new one and a training need it.

    Raises:
        ConfigError: a name is unknown or repeated.
    """
    names = names_in(log)
    for name in names:
        if name not in LOGGERS and origin_of("log", name) is None:
            loggers = (*LOGGERS, *plugin_names("log"))
            raise ConfigError(
                f"log={log}: no logger '{name}'.{did_you_mean(name, loggers)} "
                f"There are: {', '.join(loggers)}; several as {LOGGERS[0]}+{LOGGERS[1]}."
            )
    return names


def check_log(log: str | None, project: str | None) -> None:
    """Raises ConfigError for a repeated name in `log`, and for a project if no logger has projects."""
    names = names_in(log)
    if project is not None and not set(names) & set(WITH_PROJECTS):
        raise ConfigError(
            f"log_project={project} is for {', '.join(WITH_PROJECTS)}, and log={format_setting(log)} has none of them. "
            f"Leave it out (log_project=null), or add: log={WITH_PROJECTS[0]}"
        )
    if project is not None and not project.strip():
        raise ConfigError("log_project is empty. Give a name, or null for: moe")
