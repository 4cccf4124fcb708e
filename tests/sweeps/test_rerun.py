"""Points that are run once more: every one, or those of other code; what there was can be brought back."""

import json
from pathlib import Path

import pytest

from moe_cli.errors import MoeError, RunBusy
from moe_cli.execution.machine import code_version
from moe_cli.files.reading import read_json
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.locks import lock
from moe_cli.runs.recorder import Recorder
from moe_cli.runs.trash import remove
from moe_cli.sweeps.rerun import discard, outdated
from tests.tiny import tiny_config


@pytest.fixture
def runs(tmp_path: Path) -> list[Run]:
    """Makes an unstarted run, a run of this code, and a run of another commit, and adds an absent folder."""
    made = [create_run(tmp_path, "sweep", tiny_config(tmp_path, seed=seed)) for seed in range(3)]
    version, commit, diff = code_version()
    now = {
        "packages": {"moe-cli": version},
        "git": {"commit": commit, "diff": f"{diff}diff --git a/README.md b/README.md"},
    }
    for run, meta in zip(made[1:], (now, {**now, "git": {"commit": "0" * 40, "diff": ""}}), strict=True):
        Recorder(run).meta(meta)
        Recorder(run).complete({"val_bpb": 1.0})
    return [*made, Run(tmp_path / "sweep" / "absent")]


def test_which_runs_are_outdated(runs: list[Run]) -> None:
    """All in which there is something with force, those of other code with code, none without either."""
    assert runs[1:3] == outdated(runs, force=True, code=False)
    assert runs[2:3] == outdated(runs, force=False, code=True)
    assert [] == outdated(runs, force=False, code=False)


def test_what_tells_code_from_other_code() -> None:
    """Version, commit, and what was changed in the package; a changed README is no other code."""
    meta = {"packages": {"moe-cli": "1.0"}, "git": {"commit": "abc", "diff": ""}}
    changed = "diff --git a/moe_cli/run.py b/moe_cli/run.py\n-x\n+y\n"
    assert ("1.0", "abc", "") == code_version(meta)
    assert ("1.0", "abc", "") == code_version({**meta, "git": {"commit": "abc", "diff": "diff --git a/README.md b/R"}})
    assert code_version(meta) != code_version({**meta, "git": {"commit": "abc", "diff": changed}})
    assert ("1.0", None, "") == code_version({**meta, "git": None})
    assert (None, None, "") == code_version({})


def test_what_is_discarded_lies_in_the_trash(runs: list[Run], tmp_path: Path) -> None:
    """Whole, under outputs/.trash, with a note of where it lay; two of one name do not collide."""
    results = runs[1].summary()
    discard(runs[1:3], tmp_path)
    assert (False, False) == (runs[1].path.exists(), runs[2].path.exists())
    (kept,) = (tmp_path / ".trash").glob(f"*-sweep-{runs[1].id}")
    assert results == Run(kept).summary()
    note = json.loads((kept / "trashed.json").read_text())
    assert f"sweep/{runs[1].id}" == note["from"]
    again = create_run(tmp_path, "sweep", tiny_config(tmp_path, seed=1))
    assert runs[1].id == again.id
    taken = remove(again, tmp_path)
    assert taken.path != kept
    assert taken.origin == note["from"]


def test_nothing_is_discarded_while_one_is_at_work(runs: list[Run], tmp_path: Path) -> None:
    """The error names the run, and every run stays where it is."""
    with lock(runs[2].path), pytest.raises(RunBusy, match=f"{runs[2].id} is running: wait for it or stop it"):
        discard(runs[1:3], tmp_path)
    assert all(run.path.exists() for run in runs[1:3])
    with pytest.raises(MoeError, match="does not lie"):
        remove(runs[1], tmp_path / "elsewhere")


def test_a_damaged_meta_is_other_code(runs: list[Run]) -> None:
    """A complete run with a damaged meta.json is run again; a run without meta.json is not."""
    (runs[1].path / "meta.json").write_text('{"packages": [], "git": 3}')
    (runs[2].path / "meta.json").unlink()
    assert read_json(runs[1].path / "meta.json") is not None
    assert runs[1:2] == outdated(runs, force=False, code=True)
