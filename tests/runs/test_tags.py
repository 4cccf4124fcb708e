"""Tags and the mark of a sweep at work."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from moe_cli.config.data import PackagedCorpusConfig
from moe_cli.errors import ConfigError, DataError, MoeError
from moe_cli.files.reading import read_json
from moe_cli.report.sweep_record import read_record, record_command
from moe_cli.runs.corpora import record_corpora
from moe_cli.runs.locks import is_sweep_running, sweep_lock
from moe_cli.runs.tags import check_tag, read_tags, set_tags
from tests.report.folders import stopped


def test_tags_are_kept_in_the_folder(tmp_path: Path) -> None:
    """Tags are read back in their order, also after the folder was moved; without a file there are none."""
    run = stopped(tmp_path, "pending")
    assert read_tags(run) == ()
    set_tags(run, ["good", "baseline"])
    moved = type(run)(run.path.rename(tmp_path / "moved"))
    assert read_tags(moved) == ("good", "baseline")


@pytest.mark.parametrize("text", ["", "+", "-x", "++x", "a b", "a,b", "it's", 'say"', "a\x1b[31m", "a\nb", "x" * 41])
def test_a_tag_is_one_harmless_word(text: str) -> None:
    """Nothing that would break a list, a filter or a terminal."""
    with pytest.raises(ConfigError, match="tag"):
        check_tag(text)


def test_a_leading_plus_says_nothing() -> None:
    """+good and good are one tag."""
    assert (check_tag("+good"), check_tag("good"), check_tag("[red]")) == ("good", "good", "[red]")


def test_a_folder_is_at_work_as_long_as_somebody_is(tmp_path: Path) -> None:
    """Two may mark it; it is marked until both have left, however they leave."""
    assert not is_sweep_running(tmp_path)
    with sweep_lock(tmp_path):
        with sweep_lock(tmp_path):
            assert is_sweep_running(tmp_path)
        assert is_sweep_running(tmp_path)
    assert not is_sweep_running(tmp_path)


def test_a_killed_process_is_not_at_work(tmp_path: Path) -> None:
    """The operating system takes the mark away."""
    code = "import sys, time, pathlib\nfrom moe_cli.runs.locks import sweep_lock\n"
    code += "with sweep_lock(pathlib.Path(sys.argv[1])):\n print('in', flush=True)\n time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout
    with process.stdout as printed:
        assert printed.readline() == b"in\n"
    assert is_sweep_running(tmp_path)
    process.kill()
    process.wait()
    assert not is_sweep_running(tmp_path)


@pytest.mark.parametrize("content", [b"{", b"\0" * 50, b'{"a": ' * 20_000])
def test_notes_that_cannot_be_read_are_not_written_over(tmp_path: Path, content: bytes) -> None:
    """A damaged corpora.json is an error and stays; a damaged sweep.json is set aside and begun again."""
    (tmp_path / "corpora.json").write_bytes(content)
    found = [(PackagedCorpusConfig(name="python"), {"sha256": "ab", "source": "data=python"})]
    with pytest.raises(DataError, match="so that the data of the sweep cannot be checked"):
        record_corpora(tmp_path, found)
    assert content == (tmp_path / "corpora.json").read_bytes()
    record_corpora(tmp_path, found, replace=True)
    assert ["ab"] == list((read_json(tmp_path / "corpora.json") or {}).values())
    (tmp_path / "sweep.json").write_bytes(content)
    record_command(tmp_path, ["moe", "sweep"], {}, seeds=[0], where=[], version=None)
    assert content == (tmp_path / "sweep.json.damaged").read_bytes()
    assert 1 == len(read_record(tmp_path)["commands"])


@pytest.mark.parametrize(
    ("number", "way"), [(errno.EROFS, "Copy the run and tag the copy: cp -r "), (errno.ENOSPC, "Free space")]
)
def test_tags_that_cannot_be_written_name_a_way_on(
    number: int, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read-only folder is copied; a full disk needs space."""

    def fail(*arguments: object) -> None:
        raise OSError(number, os.strerror(number))

    run = stopped(tmp_path, "pending")
    monkeypatch.setattr("moe_cli.runs.tags.write_json", fail)
    with pytest.raises(MoeError, match=f"^cannot write tags to {run.path}: {os.strerror(number)}. {way}"):
        set_tags(run, ["good"])
