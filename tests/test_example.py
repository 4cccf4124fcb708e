"""The worked example prints what it says, block by block."""

import io
import re
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import torch

EXAMPLE = (Path(__file__).parents[1] / "docs/tutorial/moe-from-scratch.md").read_text(encoding="utf-8")
FAULTS = ("gate", "choice", "computed", "updated")


@pytest.fixture(scope="module")
def printed() -> list[tuple[str, str]]:
    """Of each Python block of the example, run one after the other, what it prints and what stands below it."""
    blocks = re.findall(r"```python\n(.*?)```\n(?:\n```text\n(.*?)```)?", EXAMPLE, flags=re.S)
    space: dict[str, Any] = {"__name__": "example"}
    found = []
    with torch.random.fork_rng():
        try:
            for code, said in blocks:
                with redirect_stdout(io.StringIO()) as output:
                    exec(code, space)  # noqa: S102  (our own file)
                found.append((output.getvalue(), said))
        finally:
            torch.set_default_dtype(torch.float32)
    return found


@pytest.mark.parametrize("number", range(1, 1 + len(FAULTS)), ids=FAULTS)
def test_the_example_prints_what_it_says(printed: list[tuple[str, str]], number: int) -> None:
    """Each fault is shown, and shown not to be there in the right one; the blocks without output print nothing."""
    said, expected = printed[number]
    assert expected
    assert expected == said


def test_the_example_is_short() -> None:
    """Five minutes: a block of code for each fault after the first, and not longer than two screens in all."""
    blocks = re.findall(r"```python\n(.*?)```", EXAMPLE, flags=re.S)
    assert 1 + len(FAULTS) == len(blocks)
    assert sum(block.count("\n") for block in blocks) < 110
