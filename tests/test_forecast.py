"""What is known before a run starts: what it will do, and whether the dense run it is to start from fits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli import forecast as module
from moe_cli.config.data import TextData
from moe_cli.config.launch import LaunchConfig
from moe_cli.errors import ConfigError, RunNotFound
from moe_cli.forecast import check_upcycle, compiles, make_plans, pin_upcycle
from moe_cli.models.cost import cost
from moe_cli.store import create_run
from tests.tiny import finish, tiny_config, words


def test_the_plan_knows_what_the_run_will_do(text_file: Path, tmp_path: Path) -> None:
    """Steps, tokens and time before anything is built; twice the threads or the speed halve the time."""
    config = tiny_config(text_file, train={"steps": None, "tokens": 1000})
    (plan,) = make_plans([config], tmp_path, 1e9)
    assert (16, 1024) == (plan.steps, plan.tokens)
    assert cost(config, 256) == plan.cost
    (twice,) = make_plans([replace(config, train=replace(config.train, threads=2))], tmp_path, 1e9)
    assert (1, 2) == (plan.threads, twice.threads)
    assert plan.seconds == 2 * twice.seconds
    minutes = [tiny_config(text_file, train={"steps": None, "minutes": number}) for number in (1.0, 2.0)]
    timed, longer = make_plans(minutes, tmp_path, 1e9)
    assert (None, None) == (timed.steps, timed.tokens)
    assert 60 == pytest.approx(longer.seconds - timed.seconds)
    assert 60 < timed.seconds < 61  # the evaluations come on top


def test_a_plan_looks_at_each_corpus_once(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's points share a look at the files; another context length or other data need their own."""
    looks: list[Any] = []
    load = module.load_data
    monkeypatch.setattr(module, "load_data", lambda *arguments: looks.append(arguments[:2]) or load(*arguments))
    configs = [tiny_config(text_file, expert=expert) for expert in (2, 4, 8)]
    longer = tiny_config(text_file, model={"context_length": 32})
    plans = make_plans([*configs, longer], tmp_path, 1e9)
    assert [2, 4, 8, 4] == [plan.config.expert for plan in plans]
    assert [(longer.data, 16), (longer.data, 32)] == looks


def test_nothing_to_start_from(text_file: Path, tmp_path: Path) -> None:
    """Without train.upcycle a model starts from scratch, and no run is looked for."""
    assert check_upcycle(tiny_config(text_file), tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": {"d_expert": 12}}, "experts of width 12 cannot be copies of a network of width 32. Add: match=none model.d_expert=32"),
        ({"model": {"d_expert": 32, "d_model": 8}}, "has model.d_model=16, and this model 8. Add: model.d_model=16"),
        ({"model": {"d_expert": 32, "activation": "relu"}}, "has model.activation=silu, and this model relu"),
        ({"model": {"d_expert": 32, "num_layers": 3}}, "has model.num_layers=2, and this model 3"),
    ],
)  # fmt: skip
def test_a_model_of_another_shape_is_refused(
    text_file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The message names the setting and what to add."""
    dense = finish(tiny_config(text_file, expert=1, k=1), tmp_path)
    config = tiny_config(text_file, **changes, train={"upcycle": dense.id})
    with pytest.raises(ConfigError) as error:
        check_upcycle(config, tmp_path)
    assert f"train.upcycle={dense.id}" in str(error.value)
    assert message in str(error.value)


def test_what_cannot_be_upcycled(text_file: Path, tmp_path: Path) -> None:
    """A sparse run, a run that was never begun, a run of other characters, a run that is not there, and `latest`."""
    fits = {"model": {"d_expert": 32}}
    sparse = finish(tiny_config(text_file), tmp_path)
    with pytest.raises(ConfigError, match=r"is itself sparse \(4x2\)"):
        check_upcycle(tiny_config(text_file, **fits, train={"upcycle": sparse.id}), tmp_path)
    begun = create_run(tmp_path, "runs", tiny_config(text_file, expert=1, k=1, seed=5))
    with pytest.raises(ConfigError, match=rf"has no checkpoint. Finish it: moe train --resume {begun.id}"):
        check_upcycle(tiny_config(text_file, **fits, train={"upcycle": begun.id}), tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(words(4000, seed=3))
    of_chars = {"data": TextData(path=str(other), tokenizer="chars")}
    dense = finish(tiny_config(text_file, expert=1, k=1, **of_chars), tmp_path)
    reader = tiny_config(text_file, **fits, train={"upcycle": dense.id})
    with pytest.raises(ConfigError, match="reads other tokens: its data are text, chars"):
        check_upcycle(reader, tmp_path)
    check_upcycle(replace(reader, **of_chars), tmp_path)
    with pytest.raises(RunNotFound, match="no run 'gpt-nothing'"):
        check_upcycle(tiny_config(text_file, train={"upcycle": "gpt-nothing"}), tmp_path)
    with pytest.raises(ConfigError, match=r"train\.upcycle=latest means another run"):
        tiny_config(text_file, train={"upcycle": "latest"})


def test_the_source_is_pinned(text_file: Path, tmp_path: Path) -> None:
    """Whatever name it was given, a run keeps its source's place; one from elsewhere its whole path."""
    dense = finish(tiny_config(text_file, expert=1, k=1), tmp_path)
    for name in (dense.id, "gpt-dense", str(dense.path)):
        config = tiny_config(text_file, model={"d_expert": 32}, train={"upcycle": name})
        assert pin_upcycle(config, tmp_path).train.upcycle == f"runs/{dense.id}"
    assert pin_upcycle(config, tmp_path / "other").train.upcycle == str(dense.path)
    plain = tiny_config(text_file)
    assert pin_upcycle(plain, tmp_path) is plain


@pytest.mark.parametrize(
    ("train", "device", "expected"),
    [
        ({"compile": "off", "minutes": 60.0}, "cpu", False),
        ({"compile": "on"}, "cuda", True),
        ({"minutes": 10.0}, "cpu", True),
        ({"minutes": 9.0}, "cpu", False),
        ({"minutes": 10.0}, "cuda", False),
        ({"flops": 1.01 * 600 * 4e10}, "cpu", True),
        ({"flops": 0.99 * 600 * 4e10}, "cpu", False),
        ({"flops": 1.01 * 600 * 4e10, "threads": 2}, "cpu", False),
    ],
)
def test_what_is_compiled(text_file: Path, train: dict[str, Any], device: str, expected: bool) -> None:
    """train.compile=auto: trainings of ten minutes and more on a CPU, judged by the budget and the threads alone."""
    assert expected == compiles(tiny_config(text_file, train={"steps": None, **train}), 256, device)


def test_nothing_is_compiled_where_it_cannot_be(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto leaves it out without a C++ compiler and in several processes."""
    long = {"steps": None, "minutes": 60.0}
    together = tiny_config(text_file, train=long, launch=LaunchConfig(procs=2))
    assert not compiles(together, 256, "cpu")
    monkeypatch.setenv("PATH", "")
    assert not compiles(tiny_config(text_file, train=long), 256, "cpu")
