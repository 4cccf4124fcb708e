"""The house stays in order: sizes, names, and what starting up imports."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

from tests.sources import PACKAGE, package_nodes, package_texts, package_trees

HEAVY = {"torch", "hydra", "omegaconf", "pandas", "numpy", "rich"}
DRAWERS = {"utils.py", "util.py", "helpers.py", "common.py", "misc.py"}


def test_no_heavy_import_at_start_up() -> None:
    """`moe --help` imports none of the large packages."""
    code = (
        "import sys; sys.argv = ['moe', '--help']\ntry:\n import moe_cli.cli.app as a; a.main()\nexcept SystemExit: pass\n"
        f"print(sorted({HEAVY} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"


def test_package_import_is_lazy() -> None:
    """`import moe_cli` imports no torch, and its promised names are there all the same."""
    code = "import sys, moe_cli; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    from moe_cli import MoELayer, SparseExpertModel, load_curves, load_routing, load_runs, sweep, train

    assert all(map(callable, (MoELayer, SparseExpertModel, load_curves, load_routing, load_runs, sweep, train)))


def test_exported_names_are_no_modules() -> None:
    """Importing a module of that name would replace the exported function by the module."""
    import moe_cli

    modules = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert [] == [name for name in moe_cli.__all__ if name in modules]


def test_files_are_one_thing() -> None:
    """Every file has a docstring that says which question it answers, and no drawer's name."""
    assert [] == [name for name, tree in package_trees().items() if not ast.get_docstring(tree)]
    assert [] == [name for name in package_texts() if Path(name).name in DRAWERS]


def test_nothing_executes_on_load() -> None:
    """No file unpickles, evaluates text, or names code in a configuration."""
    forbidden = ("pickle", "torch.load(", " eval(", " exec(", "yaml.load(", "yaml.unsafe_load", "hydra.utils")
    conf = (PACKAGE.parent / "conf").rglob("*.yaml")
    found = [(name, word) for name, text in package_texts().items() for word in forbidden if word in text]
    found += [(path.name, "_target_") for path in conf if "_target_" in path.read_text(encoding="utf-8")]
    assert found == []


# Calls that write, or delete; those of builtins and of modules by their whole name, methods by the last part of it.
WRITING = {
    "os.mkdir", "os.makedirs", "os.remove", "os.unlink", "os.rmdir", "os.rename", "os.replace", "os.truncate",
    "os.chmod", "os.link", "os.symlink", "shutil.rmtree", "shutil.move", "shutil.copy", "shutil.copyfile", "shutil.copytree",
    "tempfile.mkstemp", "tempfile.mkdtemp", "tempfile.NamedTemporaryFile", "tempfile.TemporaryDirectory",
    ".rename", ".mkdir", ".unlink", ".rmdir", ".touch", ".write_text", ".write_bytes", ".symlink_to", ".hardlink_to", ".chmod", ".tofile",
    "save_file", "np.save",
}  # fmt: skip
# Into a folder of its own name that `writing` has just made; a keeper of Ray's has nothing of ours but the flags; a
# terminal, what closed streams write to, and /dev/null are no files; the formatter of a help writes into a string; a
# shell's own settings may be links.
ELSEWHERE = {
    "data/corpus_builder.py": {".write_text", ".tofile"}, "data/dataset.py": {"np.save", ".write_text"},
    "data/shards.py": {"open"}, "training/checkpoint_writer.py": {"save_file"},
    "sweeps/executors/ray.py": {"os.open"}, "cli/echo.py": {"open", "os.open"}, "data/tokenizer_check.py": {"os.open"},
    "cli/help.py": {".write_text"}, "testing/task.py": {".write_text"}, "cli/shell_completion.py": {".mkdir", ".write_text"},
}  # fmt: skip


def _writes(nodes: Iterable[ast.AST]) -> set[str]:
    """The calls in a file that write."""
    found = set()
    for node in nodes:
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            modes = [*node.args[1:2], *(each.value for each in node.keywords if each.arg == "mode")]
            if name == "open" and any(set(ast.unparse(mode)) & set("wax+") for mode in modes):
                found.add(name)
            if name == "os.open" and not re.fullmatch(r"(os\.O_RDONLY|flags)( \| os\.\w+)*", ast.unparse(node.args[1])):
                found.add(name)
            found |= {name, "." + name.rpartition(".")[2] if "." in name else name} & WRITING
    return found


def test_one_module_writes() -> None:
    """All that is written, made, renamed or deleted goes through `writing`, which follows no link out of an outputs folder."""
    found = {name: calls for name, nodes in package_nodes().items() if (calls := _writes(nodes))}
    del found["files/writing.py"]
    assert ELSEWHERE == found
