"""The task of a configuration on its data."""

from moe_cli.config.probes import ProbeConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import MaskedLM, RatingTask, SpanCorruption
from moe_cli.data.images import Images
from moe_cli.data.load import Data
from moe_cli.data.ratings import Ratings
from moe_cli.errors import ConfigError
from moe_cli.plugins import Plugin, plugin_of
from moe_cli.tasks.answers import AnswersTask
from moe_cli.tasks.base import Task
from moe_cli.tasks.causal_lm import TextTask, window_settings
from moe_cli.tasks.image_classification import ImagesTask
from moe_cli.tasks.masked_lm import MaskedTask
from moe_cli.tasks.rating_prediction import RatingsTask
from moe_cli.tasks.span_corruption import SpanTask


def make_task(config: RunConfig, data: Data) -> Task:
    """Returns the task of a resolved configuration. Raises ConfigError where that of a plug-in is none."""
    if plugin := plugin_of(config.task):
        return _task_of(plugin, config, data)
    length = config.model.context_length
    if isinstance(data, Images):
        return ImagesTask(data, length, config.seed)
    if isinstance(data, Ratings):
        assert isinstance(config.task, RatingTask)
        return RatingsTask(data, config.seed, config.task)
    if isinstance(config.data, ProbeConfig):
        return AnswersTask(data, config.seed, config.data)
    windows = window_settings(config)
    if isinstance(config.task, MaskedLM):
        return MaskedTask(data, length, config.seed, config.task, windows["packing"], windows["eval_length"])
    if isinstance(config.task, SpanCorruption):
        return SpanTask(data, length, config.seed, config.task, config.eval.context_length)
    return TextTask(data, **windows)


def _task_of(plugin: Plugin, config: RunConfig, data: Data) -> Task:
    """Returns the task of a plug-in."""
    task = plugin.code()(config, data)
    if not isinstance(task, Task):
        raise ConfigError(
            f"task={plugin.name}: its build returned {type(task).__name__}, not a moe_cli.tasks.base.Task."
        )
    return task
