"""Hydra's loader of configurations, over the folders of a user, the packaged conf/ and the plug-ins."""

import io
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from omegaconf import OmegaConf
from omegaconf._utils import get_yaml_loader

from moe_cli.config.folders import is_text
from moe_cli.config.settings import packaged_conf, parse_conf
from moe_cli.config.yaml_file import read_yaml_text
from moe_cli.plugins import find

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl

# In place of Hydra's configuration of itself, which is removed from every tree: composing it takes half of the time.
# This is what Hydra's loader reads and writes. The groups are open, so that files written for Hydra may override them.
_HYDRA_NODE: dict[str, Any] = {
    "defaults": [
        {group: None}
        for group in (
            *("output", "launcher", "sweeper", "help", "hydra_help", "hydra_logging", "job_logging"),
            *("callbacks", "env"),
        )
    ],
    "searchpath": [],
    "overrides": {"hydra": [], "task": []},
    "runtime": {"choices": {}, "version": None, "version_base": None, "cwd": None, "config_sources": []},
    "job": {
        "name": "moe",
        "config_name": None,
        "override_dirname": None,
        "env_copy": [],
        "env_set": {},
        "config": {"override_dirname": {"kv_sep": "=", "item_sep": ",", "exclude_keys": []}},
    },
}


def parse_packaged(text: str) -> dict[str, Any]:
    """Returns the values that OmegaConf reads in a file of the packaged conf/, by the parser in C if there is one."""
    return _yaml_loader()(text).get_single_data() or {}


@cache
def _yaml_loader() -> Callable[..., Any]:
    """Returns OmegaConf's loader of YAML, which takes 1.0e12 for a number, on the quickest parser."""
    loader = get_yaml_loader()
    tables = ("yaml_implicit_resolvers", "yaml_constructors")
    parser = getattr(yaml, "CSafeLoader", None)
    return type("Loader", (parser,), {name: getattr(loader, name) for name in tables}) if parser else loader


def hydra_loader(folders: Sequence[Path]) -> "ConfigLoaderImpl":
    """Returns Hydra's own composition over `folders`; earlier folders take precedence.

    Only this file uses hydra._internal. Hydra's public entry gives a user's folder the lowest priority, and scans
    for plugins, which would run code of unrelated packages.
    """
    from hydra._internal.config_loader_impl import ConfigLoaderImpl
    from hydra._internal.config_search_path_impl import ConfigSearchPathImpl
    from hydra._internal.core_plugins import basic_launcher, basic_sweeper  # noqa: F401  (they register their configs)
    from hydra._internal.core_plugins.file_config_source import FileConfigSource
    from hydra._internal.core_plugins.importlib_resources_config_source import ImportlibResourcesConfigSource
    from hydra._internal.core_plugins.structured_config_source import StructuredConfigSource
    from hydra._internal.sources_registry import SourcesRegistry
    from hydra.plugins.config_source import ConfigResult

    class Files(FileConfigSource):
        """Reads the files of a folder: those of the user with bounds, and with numbers of text settings as written."""

        def load_config(self, config_path: str) -> Any:
            file = Path(self.path) / self._normalize_file_name(config_path)
            if not file.exists():
                return super().load_config(config_path)
            if file.is_relative_to(packaged_conf()):
                return self._load_packaged(file)
            group = config_path.split("/")[0] if "/" in config_path else ""
            header = self._get_header_dict(file.read_text(encoding="utf-8-sig", errors="replace")[:512])
            text = read_yaml_text(file, is_text, "" if header["package"] == "_global_" else group)
            tree = OmegaConf.load(io.StringIO(text))
            return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", tree, header)

        def _load_packaged(self, file: Path) -> Any:
            """Returns what the base class returns of a file of the packaged conf/, by the quickest loader."""
            text = file.read_text(encoding="utf-8")
            header, tree = self._get_header_dict(text[:512]), OmegaConf.create(parse_packaged(text))
            return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", tree, header)

        def list(self, config_path: str, results_filter: Any) -> list[str]:
            """Returns the names of .yaml files and of folders. Hydra also names .yml files, which it cannot load."""
            with warnings.catch_warnings(action="ignore"):
                names = super().list(config_path, results_filter)
            place = Path(self.path) / config_path
            return [name for name in names if (place / f"{name}.yaml").is_file() or (place / name).is_dir()]

    for source in (_hydra_node(), Files, _plugin_source(), ImportlibResourcesConfigSource, StructuredConfigSource):
        SourcesRegistry.instance().register(source)
    path = ConfigSearchPathImpl()
    path.append("schema", "node://")
    path.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        path.append("main", f"file://{folder}")
    path.append("plugins", "plugin://")
    path.append("schema", "structured://")
    return ConfigLoaderImpl(path)


def _hydra_node() -> Any:
    """Returns the class by which Hydra reads `_HYDRA_NODE`, in place of its configuration of itself."""
    from hydra._internal.core_plugins import structured_config_source
    from hydra.plugins.config_source import ConfigResult

    class StructuredConfigSource(structured_config_source.StructuredConfigSource):
        """Holds one node. By the name of the class, Hydra knows a source whose nodes have no schema elsewhere."""

        @staticmethod
        def scheme() -> str:
            return "node"

        def is_group(self, config_path: str) -> bool:
            return False

        def is_config(self, config_path: str) -> bool:
            return config_path.removesuffix(".yaml") == "hydra/config"

        def load_config(self, config_path: str) -> Any:
            node = OmegaConf.create(_HYDRA_NODE, flags={"allow_objects": True})
            return ConfigResult(self.provider, "node://hydra/config", node, {"package": None})

    return StructuredConfigSource


def _plugin_source() -> Any:
    """Returns the class by which Hydra reads the yaml of plug-ins."""
    from hydra.plugins.config_source import ConfigResult, ConfigSource

    class Plugins(ConfigSource):
        """Reads the yaml of a plug-in, as if it were a file of the packaged conf/."""

        @staticmethod
        def scheme() -> str:
            return "plugin"

        def available(self) -> bool:
            return True

        def is_group(self, config_path: str) -> bool:
            return False

        def is_config(self, config_path: str) -> bool:
            group, _, name = config_path.removesuffix(".yaml").partition("/")
            return find(group, name) is not None

        def load_config(self, config_path: str) -> Any:
            group, _, name = config_path.removesuffix(".yaml").partition("/")
            plugin = find(group, name)
            assert plugin is not None
            tree = OmegaConf.create(parse_conf(plugin.conf_text(), f"{group}={name}") | {"name": name})
            return ConfigResult(self.provider, f"plugin://{config_path}", tree, {"package": None})

        def list(self, config_path: str, results_filter: Any) -> list[str]:
            return []

    return Plugins
