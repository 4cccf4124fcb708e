"""Draws the two pictures of README.md from a finished sweep: the table in a terminal, and the page in a browser.

    python docs/draw_pictures.py SWEEP OUTPUTS    # for instance: sparsity outputs

Needs playwright and an installed Chromium.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

ASSETS = Path(__file__).parent / "assets"
COLUMNS = 112
WIDTH = 1240
# The page is shown from its top to this heading.
END = "Any against any"


def report(*words: str) -> str:
    """Runs `moe report` and returns what it prints, with colors."""
    variables = os.environ | {"FORCE_COLOR": "1", "COLUMNS": str(COLUMNS)}
    command = [sys.executable, "-m", "moe_cli", "report", *words]
    return subprocess.run(command, env=variables, stdout=subprocess.PIPE, text=True, check=True).stdout


def draw_terminal(sweep: str, outputs: str) -> None:
    """Writes the table as a terminal shows it."""
    console = Console(record=True, width=COLUMNS + 2, file=io.StringIO())
    console.print(f"[bold]$ moe report {sweep}")
    console.print(Text.from_ansi(report(sweep, "--outputs", outputs).rstrip()))
    console.save_svg(str(ASSETS / "report.svg"), title=f"moe report {sweep}")


def draw_page(sweep: str, outputs: str) -> None:
    """Writes the upper part of the page as a browser shows it."""
    from playwright.sync_api import sync_playwright

    with tempfile.TemporaryDirectory() as folder, sync_playwright() as started:
        page_file = Path(folder) / "report.html"
        report(sweep, "--outputs", outputs, "-o", str(page_file))
        browser = started.chromium.launch(executable_path=shutil.which("chromium"), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        page.goto(page_file.as_uri())
        page.wait_for_timeout(1000)
        end = page.get_by_role("heading", name=END).bounding_box()
        assert end
        area = {"x": 0.0, "y": 0.0, "width": float(WIDTH), "height": end["y"] - 12}
        page.screenshot(path=ASSETS / "report.png", full_page=True, clip=area)
        browser.close()


if __name__ == "__main__":
    draw_terminal(*sys.argv[1:])
    draw_page(*sys.argv[1:])
