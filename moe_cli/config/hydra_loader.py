"""Hydra's loader of configurations, over the folders of a user, the packaged conf/ and the plug-ins."""

import io
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import OmegaConf

from moe_cli.config.folders import is_text
from moe_cli.config.settings import packaged_conf, parse_conf
from moe_cli.config.yaml_file import read_yaml_text
from moe_cli.plugins import find

if TYPE_CHECKING:
    from hydra._internal.config_loader_impl import ConfigLoaderImpl


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
            if file.is_relative_to(packaged_conf()) or not file.exists():
                return super().load_config(config_path)
            group = config_path.split("/")[0] if "/" in config_path else ""
            header = self._get_header_dict(file.read_text(encoding="utf-8-sig", errors="replace")[:512])
            text = read_yaml_text(file, is_text, "" if header["package"] == "_global_" else group)
            tree = OmegaConf.load(io.StringIO(text))
            return ConfigResult(self.provider, f"{self.scheme()}://{self.path}", tree, header)

        def list(self, config_path: str, results_filter: Any) -> list[str]:
            """Returns the names of .yaml files and of folders. Hydra also names .yml files, which it cannot load."""
            with warnings.catch_warnings(action="ignore"):
                names = super().list(config_path, results_filter)
            place = Path(self.path) / config_path
            return [name for name in names if (place / f"{name}.yaml").is_file() or (place / name).is_dir()]

    for source in (Files, _plugin_source(), ImportlibResourcesConfigSource, StructuredConfigSource):
        SourcesRegistry.instance().register(source)
    path = ConfigSearchPathImpl()
    path.append("hydra", "pkg://hydra.conf")
    for folder in folders:
        path.append("main", f"file://{folder}")
    path.append("plugins", "plugin://")
    path.append("schema", "structured://")
    return ConfigLoaderImpl(path)


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
