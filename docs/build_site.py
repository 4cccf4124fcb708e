"""Builds the documentation site; a broken link or anchor is an error.

    python docs/build_site.py [FOLDER]    # default: site/

The pages are plain Markdown, and their relative links work on a code host. This script copies README.md, docs/ and the
pages of .github/ into one folder, changes the links accordingly, and runs the generator there. The navigation of the
site follows the headings and links of docs/README.md.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
# Files whose place in the site is not their place below docs/. The site begins with README.md.
MOVED = {
    "README.md": "index.md",
    "docs/README.md": "documentation.md",
    ".github/CONTRIBUTING.md": "contributing.md",
    ".github/CHANGELOG.md": "changelog.md",
    "LICENSE": "license.txt",
    "docs/tutorial/tour.py": "tutorial/tour.md",
}
CODE = re.compile(r"(^```.*?^```$|`[^`\n]+`)", re.S | re.M)
LINK = re.compile(r"(?<=\]\()(?P<target>[^)\s#]+)(?P<anchor>#[^)\s]*)?(?=\))")
SETTINGS = """[project]
site_name = "moe"
site_description = "{description}"
docs_dir = "pages"
site_dir = "site"
use_directory_urls = false
nav = {navigation}

[project.theme]
font = false
features = ["navigation.sections", "navigation.footer", "navigation.top", "content.code.copy", "search.highlight"]

[[project.theme.palette]]
media = "(prefers-color-scheme)"
toggle.icon = "lucide/sun-moon"
toggle.name = "Switch to light mode"

[[project.theme.palette]]
media = "(prefers-color-scheme: light)"
scheme = "default"
toggle.icon = "lucide/sun"
toggle.name = "Switch to dark mode"

[[project.theme.palette]]
media = "(prefers-color-scheme: dark)"
scheme = "slate"
toggle.icon = "lucide/moon"
toggle.name = "Switch to the system's mode"

[project.validation]
invalid_links = true
invalid_link_anchors = true
"""


def source_files() -> list[str]:
    """Returns the files of the site, relative to the root of the repository."""
    found = [*ROOT.glob("docs/**/*.md"), *ROOT.glob("docs/assets/*")]
    return sorted({*MOVED, *(path.relative_to(ROOT).as_posix() for path in found)})


def site_path(source: str) -> str:
    """Returns the place in the site of a file of the repository."""
    return MOVED.get(source) or source.removeprefix("docs/")


def site_text(source: str, files: list[str]) -> str:
    """Returns a page with its relative links as they are in the site; code is not changed."""
    folder, here = os.path.dirname(source), os.path.dirname(site_path(source))

    def new_link(match: re.Match[str]) -> str:
        target = match["target"]
        if ":" in target:
            return match[0]
        linked = os.path.normpath(os.path.join(folder, target))
        if linked not in files:
            raise SystemExit(f"{source} links to {target}, which is no file of the site.")
        return os.path.relpath(site_path(linked), here or ".") + (match["anchor"] or "")

    text = (ROOT / source).read_text(encoding="utf-8")
    parts = CODE.split(script_as_page(text) if source.endswith(".py") else text)
    return "".join(part if part.startswith("`") else LINK.sub(new_link, part) for part in parts)


def script_as_page(script: str) -> str:
    """Returns a script of cells as a page: text cells as they are, code cells as blocks."""
    cells = re.split(r"^# %%", script, flags=re.M)[1:]
    texts = [re.sub(r"^# ?", "", cell.partition("\n")[2], flags=re.M) for cell in cells]
    blocks = [f"```python\n{cell.strip()}\n```\n" for cell in cells]
    is_text = [cell.startswith(" [markdown]") for cell in cells]
    return "\n".join(text if each else block for text, block, each in zip(texts, blocks, is_text, strict=True))


def navigation() -> list[dict[str, Any]]:
    """Returns the titles and pages of docs/README.md, by its headings."""
    groups: list[dict[str, Any]] = [{"moe": "index.md"}]
    items: list[Any] = []
    for line in (ROOT / "docs/README.md").read_text(encoding="utf-8").splitlines():
        level, title = re.match(r"(#*) ?(.*)", line).groups()  # type: ignore[union-attr]
        if len(level) == 2:
            section: list[Any] = []
            items = section
            groups.append({title: section})
        elif len(level) == 3:
            items = []
            section.append({title: items})
        items += [
            {text: site_path(os.path.normpath(f"docs/{path}"))}
            for text, path in re.findall(r"\[([^]]+)\]\(([^)]+\.(?:md|py))\)", line)
        ]
    return groups


def as_toml(value: Any) -> str:
    """Returns lists, tables of one key, and text as TOML."""
    if isinstance(value, list):
        return "[" + ", ".join(as_toml(each) for each in value) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {as_toml(each)}" for key, each in value.items()) + "}"
    return json.dumps(value)


def stage(folder: Path) -> None:
    """Writes the pages and the settings of the generator into a folder."""
    files = source_files()
    for source in files:
        target = folder / "pages" / site_path(source)
        target.parent.mkdir(parents=True, exist_ok=True)
        if target.suffix == ".md":
            target.write_text(site_text(source, files), encoding="utf-8")
        else:
            shutil.copyfile(ROOT / source, target)
    description = re.search(r"^description = (.*)$", (ROOT / "pyproject.toml").read_text(), flags=re.M)
    assert description
    settings = SETTINGS.format(description=json.loads(description[1]), navigation=as_toml(navigation()))
    (folder / "zensical.toml").write_text(settings, encoding="utf-8")


def main() -> None:
    target = Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "site").absolute()
    with tempfile.TemporaryDirectory() as scratch:
        stage(Path(scratch))
        build = [sys.executable, "-m", "zensical", "build", "--strict"]
        result = subprocess.run(build, cwd=scratch, env=os.environ | {"NO_COLOR": "1"}, check=False)
        if result.returncode:
            raise SystemExit(result.returncode)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(Path(scratch) / "site", target)
    print(f"built {target}")


if __name__ == "__main__":
    main()
