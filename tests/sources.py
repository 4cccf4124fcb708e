"""The Python files of the package, read and parsed once by each process of the tests."""

import ast
from functools import cache
from pathlib import Path

PACKAGE = Path(__file__).parents[1] / "moe_cli"


@cache
def package_texts() -> dict[str, str]:
    """Returns the text of every file by its path in the package."""
    files = sorted(PACKAGE.rglob("*.py"))
    return {path.relative_to(PACKAGE).as_posix(): path.read_text(encoding="utf-8") for path in files}


@cache
def package_trees() -> dict[str, ast.Module]:
    """Returns the syntax tree of every file."""
    return {name: ast.parse(text) for name, text in package_texts().items()}


@cache
def package_nodes() -> dict[str, list[ast.AST]]:
    """Returns all nodes of every tree, in no order; in half of the time of `ast.walk`."""
    return {name: _nodes(tree) for name, tree in package_trees().items()}


def _nodes(tree: ast.AST) -> list[ast.AST]:
    found = [tree]
    for node in found:  # grows while it is read
        for value in vars(node).values():
            if isinstance(value, ast.AST):
                found.append(value)
            elif isinstance(value, list):
                found += [item for item in value if isinstance(item, ast.AST)]
    return found
