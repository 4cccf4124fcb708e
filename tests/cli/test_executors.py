"""moe sweep --executor: the points stay what they are, and what cannot be is said in a line."""

from tests.cli.conftest import Moe


def test_the_same_runs_under_every_executor(moe: Moe, settings: list[str]) -> None:
    """`moe sweep --dry-run` with an executor prints the points it prints without one, and reaches for no cluster."""
    plain = moe("sweep", "expert=1,4", "k=1", *settings, "--dry-run").stdout
    chosen = {"ray": ["--executor", "ray", "executor.address=nowhere:1"], "slurm": ["executor=slurm", "executor.qos=x"]}
    for name, words in chosen.items():
        shown = moe("sweep", "expert=1,4", "k=1", *settings, "--dry-run", *words).stdout
        assert _points(plain) == _points(shown)
        assert f"as many runs at a time as {name} has room for" in shown


def _points(text: str) -> list[str]:
    """The lines of a dry run, without the one that says how long it takes where."""
    return [line for line in text.splitlines() if not line.startswith("about ")]


def test_groups_list_executors(moe: Moe) -> None:
    """`moe config --groups` has a line for each."""
    listed = moe("config", "--groups").stdout
    assert all(f"executor={name}" in listed for name in ("local", "ray", "slurm"))


def test_a_wrong_executor_is_a_wrong_request(moe: Moe, settings: list[str]) -> None:
    """Exit code 2 and one line, before any run folder is made."""
    result = moe("sweep", "expert=1,4", "k=1", *settings, "--executor", "slrum")
    said = "error: no executor 'slrum'. Did you mean 'slurm'? There are: local, ray, slurm."
    assert (2, said) == (result.exit_code, result.output.strip())
