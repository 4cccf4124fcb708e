"""Adds the addresses of the project, and a README with absolute links, to the metadata of the package.

The environment variable REPOSITORY_URL says where the repository is; the release workflow sets it. Without it the
package has no addresses, and its README has neither pictures nor links to files.
"""

import os
import re
from pathlib import Path
from typing import Any

from hatchling.metadata.plugin.interface import MetadataHookInterface

LINK = re.compile(r"(?P<picture>!?)\[(?P<text>[^]]*)\]\((?!https?:|#)(?P<target>[^)\s]+)\)")


def package_readme(text: str, repository: str, version: str) -> str:
    """Returns the README for a package index: links and pictures are absolute, or left out without a repository."""

    def absolute(match: re.Match[str]) -> str:
        if not repository:
            return "" if match["picture"] else match["text"]
        kind = "raw" if match["picture"] else "blob"
        return f"{match['picture']}[{match['text']}]({repository}/{kind}/v{version}/{match['target']})"

    return LINK.sub(absolute, text)


def package_urls(repository: str) -> dict[str, str]:
    """Returns the addresses of the project."""
    if not repository:
        return {}
    return {
        "Source": repository,
        "Documentation": f"{repository}/blob/main/docs/README.md",
        "Changelog": f"{repository}/blob/main/.github/CHANGELOG.md",
        "Issues": f"{repository}/issues",
    }


class PackageMetadata(MetadataHookInterface):
    """Sets the fields `readme` and `urls`."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        repository = os.environ.get("REPOSITORY_URL", "").rstrip("/")
        version = re.search(r'^__version__ = "(.*)"$', (root / "moe_cli/__init__.py").read_text(), flags=re.M)
        assert version
        text = package_readme((root / "README.md").read_text(encoding="utf-8"), repository, version[1])
        metadata["readme"] = {"content-type": "text/markdown", "text": text}
        metadata["urls"] = package_urls(repository)
