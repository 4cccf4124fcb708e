"""Distributions with plug-ins, as an installer leaves them: a module and its metadata in a folder of sys.path."""

from pathlib import Path
from typing import Any

ROUTER = """
from dataclasses import dataclass
from typing import Literal

from moe_cli.config.routers import PluginRouter, TokenChoiceConfig
from moe_cli.config.settings import setting
from moe_cli.plugins import Plugin


@dataclass(frozen=True)
class Powered(PluginRouter, TokenChoiceConfig):
    name: Literal["{name}"] = "{name}"
    power: float = setting(above=0)


def build(*arguments):
    from moe_cli.moe.routers.router import GatedRouter
    from moe_cli.moe.routing import routing_from_top_k

    class PoweredRouter(GatedRouter):
        def route(self, tokens, token_ids, policy):
            logits, probs = self.scores(tokens)
            chosen = self.select_experts(probs, policy)
            return routing_from_top_k(logits, probs, chosen, probs.gather(1, chosen) ** self.config.power)

    return PoweredRouter(*arguments)


CONF = '''# probabilities to a power
defaults: [_scores, _self_]
name: {name}
power: 2.0 # of the probabilities
'''
plugin = Plugin(config=Powered, build=build, conf=CONF)
"""


def router_source(name: str) -> str:
    return ROUTER.format(name=name)


def leave_mark(mark: Path) -> str:
    """Returns a line of code that writes a file, which shows that the code was run."""
    return f"open({str(mark)!r}, 'w').close()\n"


def install(
    site: Path, source: str, *, module: str, entries: dict[str, str], version: str = "1.0", **metadata: Any
) -> None:
    """Puts a distribution into a folder: its module, metadata and entry points, such as {"moe.routers": "a = m:x"}."""
    name = metadata.get("name", module.replace("_", "-"))
    site.mkdir(exist_ok=True)
    (site / f"{module}.py").write_text(source, encoding="utf-8")
    folder = site / f"{name.replace('-', '_')}-{version}.dist-info"
    folder.mkdir()
    text = f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\nSummary: A plug-in of a test\n"
    (folder / "METADATA").write_text(text, encoding="utf-8")
    lines = [f"[{group}]\n{entry}\n" for group, entry in entries.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines), encoding="utf-8")


# A model, a balancing loss, a task, a text, a logger, a metric and an executor in one file.
ALL_KINDS = """
from dataclasses import dataclass
from pathlib import Path

from moe_cli.config.balances import PluginBalance
from moe_cli.config.executors import PluginExecutor
from moe_cli.config.data import PluginCorpus
from moe_cli.config.model import PluginModel
from moe_cli.config.settings import setting
from moe_cli.config.tasks import PluginTask
from moe_cli.metrics import DERIVED, Metric
from moe_cli.plugins import Plugin


@dataclass(frozen=True)
class Ahead(PluginTask):
    name: str = "look_ahead"
    distance: int = setting(at_least=1)


def make_ahead(config, data):
    from moe_cli.tasks.causal_lm import TextTask, window_settings

    class AheadTask(TextTask):
        ahead = config.task.distance

        def metrics(self, sums, num_targets):
            return {"accuracy": 0.5}

    return AheadTask(data, **window_settings(config))


def doubled(run):
    return 2 * run.number("val_loss")


@dataclass(frozen=True)
class Spread(PluginBalance):
    name: str = "spread"
    power: float = setting(above=0)


def spread_loss(routing, config):
    return routing.probs.mean(0).pow(config.power).sum()


@dataclass(frozen=True)
class Averages(PluginModel):
    name: str = "averages"

    def backbone(self, vocab_size):
        size = vocab_size * self.d_model
        return {
            "num_params": 2 * size,
            "matmul_params": size,
            "flops_per_token": 0,
            "saved_values_per_token": self.d_model,
            "logits_per_token": vocab_size,
        }


def make_averages(config, vocab_size):
    import torch
    from torch import nn

    from moe_cli.models.blocks import make_dense_layer, run_ffn, sparse_layer_from_config

    class AverageModel(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(vocab_size, config.model.d_model)
            self.layers = nn.ModuleList(
                sparse_layer_from_config(config.at_layer(layer), vocab_size) if layer in config.sparse_layers else make_dense_layer(config.model)
                for layer in range(config.model.num_layers)
            )
            self.head = nn.Linear(config.model.d_model, vocab_size, bias=False)

        def reset_parameters(self, seed):
            generator = torch.Generator().manual_seed(seed)
            for layer in self.layers:
                layer.reset_parameters(generator)
            for weight in (self.embedding.weight, self.head.weight):
                nn.init.normal_(weight, std=0.1, generator=generator)

        def forward(self, tokens, mask=None, documents=None, policy=None):
            x, routings = self.embedding(tokens).cumsum(1), []
            for layer in self.layers:
                y, new = run_ffn(layer, x, tokens, mask, policy)
                x, routings = x + y, routings + new
            return self.head(x), routings

    return AverageModel()


class Notebook:
    def __init__(self, context):
        self.path = context.run.path / "notebook.txt"

    def start(self, past):
        self.path.write_text("begun\\n")

    def metrics(self, record):
        pass

    def finish(self, status, step, summary):
        self.path.write_text(self.path.read_text() + f"{status} at {step}\\n")


@dataclass(frozen=True)
class OneByOne(PluginExecutor):
    name: str = "one_by_one"
    note: str = setting()


def make_pool(config, outputs, workers):
    from moe_cli.sweeps.executors.local import LocalPool

    Path(outputs, "pool.txt").write_text(config.note)
    return LocalPool(outputs, 1)


@dataclass(frozen=True)
class Counted(PluginCorpus):
    name: str = "counted"
    documents: int = setting(at_least=1)


def count(config):
    from moe_cli.data.corpus_files import CorpusFile, CorpusSource
    from moe_cli.data.documents import document

    def texts():
        for first in range(config.documents):
            yield document(" ".join(str(first + number) for number in range(200)))

    return CorpusSource([CorpusFile(Path("numbers"), "numbers", texts)], state=None)


CONF = "defaults: [_layers, _self_]\\nname: averages\\nnum_layers: 2\\nd_model: 16\\nd_ff: 32\\nffn_type: mlp\\nactivation: gelu\\n"
model = Plugin(config=Averages, build=make_averages, conf=CONF)
balance = Plugin(config=Spread, build=spread_loss, conf="name: spread\\nweight: 0.1\\npower: 2 # of the mean probabilities\\n")
data = Plugin(config=Counted, build=count, conf="defaults: [_text, _self_]\\nname: counted\\ndocuments: 20")
task = Plugin(config=Ahead, build=make_ahead, conf="name: look_ahead\\ndistance: 2 # tokens from input to target\\n")
metric = Plugin(build=doubled, metric=Metric("doubled", "twice the loss", "double loss", "nats", DERIVED, -1))
logger = Plugin(name="notebook", build=Notebook)
executor = Plugin(config=OneByOne, build=make_pool, conf="name: one_by_one\\nnote: made")
"""
