"""The trash loses nothing, touches no run at work, and frees only files that no run needs."""

import errno
import json
import os
import shutil
import time
from pathlib import Path
from typing import get_args

import pytest

from moe_cli.config.data import DataConfig, PackagedImagesConfig, SyntheticRatingsConfig, TextFilesConfig
from moe_cli.data.load import Data, load_data
from moe_cli.errors import MoeError, RunBusy, RunNotFound
from moe_cli.files.writing import write_json
from moe_cli.runs.cleanup import DAY, HUB, Reclaimable, delete_reclaimable, find_reclaimable, size_of
from moe_cli.runs.folder import FAILED, PENDING, RUNNING, Run, open_or_create_run
from moe_cli.runs.locks import lock, sweep_lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.trash import find_trashed, remove, restore, trashed_runs
from tests.report.folders import complete, configure, set_status, stopped


def content(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def bring_back(name: str, outputs: Path) -> Run:
    (removed,) = find_trashed(name, trashed_runs(outputs))
    return restore(removed, outputs)


def checkpoint(run: Run, name: str, state: dict[str, object] | None = None) -> Path:
    folder = run.path / "checkpoints" / name
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(b"x" * 1000)
    write_json(folder / "state.json", {"state": state or {}})
    return folder


def test_what_is_removed_comes_back_as_it_was(tmp_path: Path) -> None:
    """No list shows it meanwhile; afterwards every byte is where it was."""
    run = complete(tmp_path, 1.7, "sparsity")
    before = content(run.path)
    remove(run, tmp_path)
    assert list_runs_by_age(tmp_path) == []
    assert [each.origin for each in trashed_runs(tmp_path)] == [f"sparsity/{run.id}"]
    back = bring_back(run.id, tmp_path)
    after = content(back.path)
    after.pop(".lock")
    assert (back.path, after, trashed_runs(tmp_path)) == (run.path, before, [])


def test_a_taken_place_is_not_overwritten(tmp_path: Path) -> None:
    """Another run of that name stays, and so does the one in the trash."""
    run = complete(tmp_path, 1.7)
    remove(run, tmp_path)
    complete(tmp_path, 1.8)
    with pytest.raises(MoeError, match="is taken by another run"):
        bring_back("latest", tmp_path)
    summary = list_runs_by_age(tmp_path)[0].summary() or {}
    assert (summary["val_bpb"], len(trashed_runs(tmp_path))) == (1.8, 1)


def test_the_same_run_twice_in_the_trash(tmp_path: Path) -> None:
    """Removed twice within a second it is there twice; its id alone is then not enough, `latest` is."""
    for val_bpb in (1.7, 1.8):
        remove(complete(tmp_path, val_bpb), tmp_path)
    first, second = trashed_runs(tmp_path)
    assert first.id == second.id
    with pytest.raises(RunNotFound, match="could be 2 runs in the trash"):
        bring_back(first.id, tmp_path)
    assert (bring_back("latest", tmp_path).summary() or {})["val_bpb"] == 1.8


def test_a_run_at_work_is_not_removed(tmp_path: Path) -> None:
    """Neither one whose lock is held, nor one that another machine is at work on, nor one of a sweep at work."""
    run = stopped(tmp_path, PENDING, group="a")
    with lock(run.path), pytest.raises(RunBusy, match="is running: wait for it or stop it"):
        remove(run, tmp_path)
    with sweep_lock(run.path.parent), pytest.raises(RunBusy, match="belongs to the sweep 'a'"):
        remove(run, tmp_path)
    set_status(run, RUNNING, host="elsewhere", heartbeat=time.time())
    with pytest.raises(RunBusy):
        remove(run, tmp_path)
    assert list_runs_by_age(tmp_path) == [run]


def test_only_runs_of_the_outputs_folder_are_removed(tmp_path: Path) -> None:
    """A run elsewhere, or in the trash already, is refused."""
    run = complete(tmp_path / "other", 1.7)
    with pytest.raises(MoeError, match="does not lie in"):
        remove(run, tmp_path / "outputs")
    removed = remove(run, tmp_path / "other")
    with pytest.raises(MoeError, match="already in the trash"):
        remove(Run(removed.path), tmp_path / "other")


@pytest.mark.parametrize("origin", ["../outside", "/tmp/outside", "a/../../outside", "", ".", ".trash/x", "a/b/c", 7])
def test_a_foreign_note_moves_nothing_elsewhere(tmp_path: Path, origin: object) -> None:
    """trashed.json may name places in the outputs folder alone, where runs can lie."""
    outputs = tmp_path / "outputs"
    removed = remove(complete(outputs, 1.7), outputs)
    write_json(removed.path / "trashed.json", {"from": origin, "time": 1.0})
    with pytest.raises(MoeError, match="has no valid origin"):
        bring_back("latest", outputs)
    assert removed.path.is_dir()


def test_a_sweep_comes_back_as_a_whole(tmp_path: Path) -> None:
    """All its runs, each once: of one that was removed twice, the newer."""
    for seed, val_bpb in ((0, 1.7), (0, 1.8), (1, 1.9)):
        remove(complete(tmp_path, val_bpb, "sparsity", seed=seed), tmp_path)
    remove(complete(tmp_path, 2.0), tmp_path)
    for removed in find_trashed("sparsity", trashed_runs(tmp_path)):
        restore(removed, tmp_path)
    assert sorted((run.summary() or {})["val_bpb"] for run in list_runs_by_age(tmp_path)) == [1.8, 1.9]
    assert len(trashed_runs(tmp_path)) == 2


def test_an_empty_trash_says_so(tmp_path: Path) -> None:
    """And a wrong name names what there is."""
    with pytest.raises(RunNotFound, match="it is empty"):
        bring_back("latest", tmp_path)
    removed = remove(complete(tmp_path, 1.7), tmp_path)
    with pytest.raises(RunNotFound, match=f"The last removed run is {removed.path.name}"):
        bring_back("nosuch", tmp_path)


def test_only_old_trash_is_waste(tmp_path: Path) -> None:
    """Age counts from the removal; freed trash is gone."""
    removed = remove(complete(tmp_path, 1.7), tmp_path)
    write_json(removed.path / "trashed.json", {"from": "runs/x", "time": time.time() - 3 * DAY})
    assert list(find_reclaimable(tmp_path, 4 * DAY)) == []
    (waste,) = find_reclaimable(tmp_path, 2 * DAY)
    assert (waste.kind, waste.num_bytes) == ("trash", size_of(removed.path))
    assert (delete_reclaimable(waste), removed.path.exists()) == (waste.num_bytes, False)


def test_newest_and_best_checkpoints_stay(tmp_path: Path) -> None:
    """A complete run keeps its newest and best checkpoints; an incomplete run keeps all."""
    run = complete(tmp_path, 1.7)
    old, best, newest = (checkpoint(run, f"step_{step:08d}", {"best_step": 20}) for step in (10, 20, 30))
    failed = stopped(tmp_path, FAILED, seed=1)
    for step in (10, 20):
        checkpoint(failed, f"step_{step:08d}")
    assert [(each.kind, each.path) for each in find_reclaimable(tmp_path, 0)] == [("checkpoints", old)]
    assert best.is_dir()
    assert newest.is_dir()
    with lock(run.path):
        assert list(find_reclaimable(tmp_path, 0)) == []


def test_half_a_checkpoint_is_waste_unless_somebody_writes_it(tmp_path: Path) -> None:
    """The lock tells; and it is asked again before anything is deleted."""
    run = stopped(tmp_path, PENDING)
    half = checkpoint(run, ".saving-abc")
    (waste,) = find_reclaimable(tmp_path, 0)
    assert (waste.kind, waste.path) == ("unfinished", half)
    with lock(run.path):
        assert list(find_reclaimable(tmp_path, 0)) == []
        assert (delete_reclaimable(waste), half.is_dir()) == (0, True)
    delete_reclaimable(waste)
    assert not half.exists()


def test_token_files_that_a_run_uses_stay(tmp_path: Path) -> None:
    """Others are waste, as long as no run at work has yet to say what it reads; so are half-made ones a day later."""
    cache = tmp_path / ".cache" / "corpora"
    for name, sha in (("used", "a" * 64), ("idle", "b" * 64)):
        (cache / name).mkdir(parents=True)
        (cache / name / "meta.json").write_text(json.dumps({"sha256": sha, "source": "x"}))
    half = cache / ".building-xyz"
    half.mkdir()
    write_json(complete(tmp_path, 1.7).path / "meta.json", {"corpus": {"sha256": "a" * 64}})
    assert [(each.kind, each.path.name) for each in find_reclaimable(tmp_path, 0)] == [("cache", "idle")]
    os.utime(half, (1, 1))
    assert [each.path for each in find_reclaimable(tmp_path, 0)] == [half, cache / "idle"]
    set_status(stopped(tmp_path, RUNNING, seed=1), RUNNING, host="elsewhere", heartbeat=time.time())
    assert [each.path for each in find_reclaimable(tmp_path, 0)] == [half]


def test_models_of_the_hub_can_be_fetched_again(tmp_path: Path) -> None:
    """They are waste a day after the last file came."""
    model = tmp_path / ".cache" / HUB / "owner--name-0123"
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"12345")
    assert [] == list(find_reclaimable(tmp_path, 0))
    for path in (model, model / "model.safetensors"):
        os.utime(path, (1, 1))
    assert [("cache", model, 5)] == [(each.kind, each.path, each.num_bytes) for each in find_reclaimable(tmp_path, 0)]


def test_cached_data_of_every_kind_are_waste_once_no_run_uses_them(tmp_path: Path, text_file: Path) -> None:
    """Whatever load_data leaves in the cache is found when no run uses it, and is kept while a run does."""
    data: list[DataConfig] = [
        TextFilesConfig(path=str(text_file)),
        PackagedImagesConfig(name="digits"),
        SyntheticRatingsConfig(),
    ]
    loaded = [load_data(each, 16, tmp_path) for each in data]
    assert set(get_args(Data)) == set(map(type, loaded))
    folders = sorted(path.parent for path in (tmp_path / ".cache").rglob("meta.json"))
    assert len(data) <= len(folders)
    assert [("cache", path) for path in folders] == [(each.kind, each.path) for each in find_reclaimable(tmp_path, 0)]
    for seed, each in enumerate(loaded):
        run = complete(tmp_path, 1.7, seed=seed)
        write_json(run.path / "meta.json", {"corpus": {"sha256": each.meta["sha256"]}})
    assert [] == list(find_reclaimable(tmp_path, 0))


def test_a_run_that_was_never_begun_makes_way(tmp_path: Path) -> None:
    """A sweep that is stopped right after it began again leaves such runs; those before come back all the same."""
    run = complete(tmp_path, 1.7, "sparsity")
    before = content(run.path)
    remove(run, tmp_path)
    assert run == open_or_create_run(tmp_path, "sparsity", run_config := configure())
    with sweep_lock(run.path.parent), pytest.raises(RunBusy):
        bring_back(run.id, tmp_path)
    (removed,) = find_trashed("sparsity", trashed_runs(tmp_path))
    assert {**before, ".lock": b""} == content(restore(removed, tmp_path).path)
    assert run_config == run.config()


@pytest.mark.parametrize("call", ["rename", "mkdir"])
def test_what_cannot_be_moved_is_an_error(call: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that cannot be moved to the trash, or out of it, stays where it is and whole, and the error says so."""

    def fail(*paths: object, **options: object) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    run, removed = complete(tmp_path, 1.7, "sparsity"), remove(complete(tmp_path, 1.8, "router"), tmp_path)
    shutil.rmtree(tmp_path / "router")
    before = content(tmp_path)
    monkeypatch.setattr(os, call, fail)
    with pytest.raises(MoeError, match=r"cannot .*: Read-only file system"):
        restore(removed, tmp_path)
    if call == "rename":
        with pytest.raises(MoeError, match=r"cannot move .*: Read-only file system"):
            remove(run, tmp_path)
    assert {**before, f"sparsity/{run.id}/.lock": b""} == {f"sparsity/{run.id}/.lock": b"", **content(tmp_path)}


def test_links_are_not_followed(tmp_path: Path) -> None:
    """Freeing a link leaves alone what it leads to."""
    (tmp_path / "precious").mkdir()
    (tmp_path / "precious" / "file").write_text("x")
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "precious")
    delete_reclaimable(Reclaimable("trash", link, 1, ""))
    assert (link.is_symlink(), (tmp_path / "precious" / "file").read_text()) == (False, "x")


def test_what_cannot_be_deleted_is_an_error(tmp_path: Path) -> None:
    """Not silence."""
    with pytest.raises(MoeError, match="cannot delete"):
        delete_reclaimable(Reclaimable("trash", tmp_path / "absent", 1, ""))
