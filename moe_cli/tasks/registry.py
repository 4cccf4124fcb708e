"""The task of a configuration on its data."""

from moe_cli.config.schema import RunConfig
from moe_cli.config.tasks import MaskedLM
from moe_cli.tasks.corpora import Corpus
from moe_cli.tasks.masked import MaskedTask
from moe_cli.tasks.text import TextTask


def make_task(config: RunConfig, corpus: Corpus) -> TextTask:
    """The task that a resolved configuration asks for."""
    if isinstance(config.task, MaskedLM):
        return MaskedTask(corpus, config.model.context_length, config.seed, config.task)
    return TextTask(corpus, config.model.context_length, config.seed)
