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
