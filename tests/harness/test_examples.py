"""Examples of the packaged tasks are what their tasks say."""

import ast
from pathlib import Path

import pytest

from moe_cli.errors import DataError
from moe_cli.harness import examples


def test_examples_are_the_same_each_time() -> None:
    """The seed decides alone; another seed gives others, and 500 pairs hold no label by chance."""
    for make in (examples.agreement, examples.brackets, examples.last_word):
        assert make() == make()
        assert make(seed=1) != make()
        assert 500 == len(make())
    for make in (examples.agreement, examples.brackets):
        assert 200 < sum(pair["label"] for pair in make()) < 300


def test_one_line_of_each_pair_is_python() -> None:
    """The right line parses, the wrong one has a bracket of another kind and the same length."""
    for pair in examples.brackets():
        right, wrong = pair["choices"][pair["label"]], pair["choices"][1 - pair["label"]]
        ast.parse(right)
        with pytest.raises(SyntaxError):
            ast.parse(wrong)
        assert 1 == sum(a != b for a, b in zip(right, wrong, strict=True))


def test_the_verb_agrees_with_the_first_noun() -> None:
    """A plural ends in s or is irregular; the noun next to the verb has the other number."""
    for pair in examples.agreement():
        right = pair["choices"][pair["label"]].split()
        is_plural, verb = [right[place].endswith("s") or right[place] == "men" for place in (1, 4)], right[5]
        assert [verb in ("are", "were", "have"), verb in ("is", "was", "has")] == is_plural


def test_the_last_word_is_in_the_passage() -> None:
    """Both words of a passage occur once before, so that counting words does not tell the right one."""
    for passage in examples.last_word():
        assert 1 == passage["text"].count(f"the {passage['word']}.")
        assert 2 == sum(f"the {thing}." in passage["text"] for thing in examples.THINGS)
        owner = passage["text"].split(".")[-2 + 1].split()[0]
        assert f"{owner} has the {passage['word']}." in passage["text"]


def test_a_file_of_text_is_one_document(tmp_path: Path) -> None:
    """No file, a missing file and a file of other bytes are errors of one line."""
    (tmp_path / "notes.txt").write_text("é\n")
    assert [{"text": "é\n"}] == examples.file_text(str(tmp_path / "notes.txt"))
    (tmp_path / "other.bin").write_bytes(b"\xff\xfe")
    for path, message in [
        (None, "--metadata text="),
        (tmp_path / "no", "no UTF-8"),
        (tmp_path / "other.bin", "no UTF"),
    ]:
        with pytest.raises(DataError, match=message):
            examples.file_text(path and str(path))
