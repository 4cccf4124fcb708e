"""The plan before a run gives its work and evaluations, and checks that its dense source fits."""

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.data import TextFilesConfig
from moe_cli.config.launch import LaunchConfig
from moe_cli.config.optim import MuonConfig
from moe_cli.config.routers import TopKConfig
from moe_cli.config.schema import RunConfig
from moe_cli.costs.model import estimate_cost
from moe_cli.data.bpe import train_bpe
from moe_cli.errors import ConfigError, RunNotFound
from moe_cli.execution import estimate as module
from moe_cli.execution.compilation import COMPILE_FLOPS, has_compiler, should_compile
from moe_cli.execution.data import load_run_data, model_vocab_size
from moe_cli.execution.estimate import (
    BFLOAT16_TIME,
    COUNTING_FLOPS,
    EXPERT_FLOPS,
    LAYER_FLOPS,
    PRODUCT_EFFICIENCY,
    SPARSE_FLOPS,
    Work,
    estimate_runs,
    evaluation_work,
    step_work,
)
from moe_cli.execution.upcycling import check_upcycle, resolve_upcycle_source
from moe_cli.runs.folder import create_run
from tests.tiny import TINY, finish, tiny_config, words


def test_the_plan_knows_what_the_run_will_do(text_file: Path, tmp_path: Path) -> None:
    """Steps, tokens and time before anything is built; twice the speed halves the time, twice the threads that of products."""
    config = tiny_config(text_file, train={"steps": None, "tokens": 1000})
    (plan,) = estimate_runs([config], tmp_path, 1e9)
    assert (16, 1024) == (plan.steps, plan.tokens)
    assert estimate_cost(config, 256) == plan.cost
    (twice,) = estimate_runs([config], tmp_path, 2e9)
    assert plan.seconds == 2 * twice.seconds
    threads = [replace(config, train=replace(config.train, threads=number)) for number in (1, 2, 4)]
    one, two, four = estimate_runs(threads, tmp_path, 1e9)
    assert (1, 2, 4) == (one.threads, two.threads, four.threads)
    assert one.seconds - two.seconds == pytest.approx(2 * (two.seconds - four.seconds))
    assert one.seconds > two.seconds > one.seconds / 2  # what threads cannot share stays
    minutes = [
        tiny_config(text_file, train={"steps": None, "minutes": number, "eval_every": None}) for number in (1.0, 2.0)
    ]
    timed, longer = estimate_runs(minutes, tmp_path, 1e9)
    assert (None, None) == (timed.steps, timed.tokens)
    assert 60 == pytest.approx(longer.seconds - timed.seconds)
    assert timed.seconds > 60  # the evaluations come on top
    assert (plan.seconds, plan.seconds / 4, 0) == tuple(map(plan.seconds_after, (0, 12, 20)))
    assert timed.seconds == timed.seconds_after(5)  # how many steps a time holds is unknown


def test_what_a_step_takes(text_file: Path) -> None:
    """Work per step is products per token and the optimizer once; each batch adds time for layers and experts."""
    config = tiny_config(text_file, expert=4, optim=MuonConfig())
    costs = estimate_cost(config, 256)
    products = costs.model_flops_per_token * 4 * 16 / PRODUCT_EFFICIENCY
    alone = 3 * LAYER_FLOPS + 2 * (SPARSE_FLOPS + 4 * EXPERT_FLOPS)
    assert costs.optimizer_flops_per_step > 0
    assert Work(products + costs.optimizer_flops_per_step, alone) == step_work(config, costs)
    twice = replace(config, train=replace(config.train, grad_accumulation=2))
    assert Work(2 * products + costs.optimizer_flops_per_step, 2 * alone) == step_work(twice, costs)
    dense = tiny_config(text_file, expert=1, k=1)
    assert 3 * LAYER_FLOPS == step_work(dense, estimate_cost(dense, 256)).alone


@pytest.mark.parametrize("has_bfloat16", [False, True])
def test_bfloat16_shortens_products_where_the_processor_multiplies_it(
    text_file: Path, tmp_path: Path, has_bfloat16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A plan counts the products of the model, not those of Muon, with the time and memory of the planned precision."""
    monkeypatch.setattr(module, "cpu_has_bfloat16", lambda: has_bfloat16)
    wide, narrow = (tiny_config(text_file, train={"precision": precision}) for precision in ("float32", "bfloat16"))
    costs = estimate_cost(wide, 256)
    saved = (1 - BFLOAT16_TIME) * costs.model_flops_per_token * wide.tokens_per_step / PRODUCT_EFFICIENCY
    difference = step_work(wide, costs).shared - step_work(narrow, costs).shared
    assert difference == pytest.approx(saved if has_bfloat16 else 0)
    monkeypatch.setattr(module, "planned_precision", lambda config: "bfloat16")
    auto = tiny_config(text_file, train={"precision": "auto"})
    (decided,), (given,) = (estimate_runs([config], tmp_path, 1e9) for config in (auto, narrow))
    assert (auto, given.seconds, given.cost.activation_bytes) == (
        decided.config,
        decided.seconds,
        decided.cost.activation_bytes,
    )


def test_what_an_evaluation_takes(text_file: Path) -> None:
    """A forward pass over its tokens, a third of training's calls for each batch begun, and counting in each sparse layer."""
    config = tiny_config(text_file)
    costs = estimate_cost(config, 256)
    for tokens, batches in ((64, 1), (65, 2)):
        expected = Work(
            tokens * costs.forward_flops_per_token / PRODUCT_EFFICIENCY,
            batches * step_work(config, costs).alone / 3 + tokens * 2 * COUNTING_FLOPS,
        )
        assert expected == evaluation_work(config, costs, tokens)
    assert 5.0 == Work(6, 2).seconds(1.0, 2)


def evaluations(config: RunConfig, outputs: Path) -> list[int]:
    """The tokens of each evaluation that a plan counts, if only they took time."""
    looks: list[int] = []
    counted = module.evaluations

    def remembered(*arguments: Any) -> list[tuple[int, int]]:
        found = counted(*arguments)
        looks.extend(tokens for tokens, times in found for _ in range(times))
        return found

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "evaluations", remembered)
        estimate_runs([config], outputs, 1e9)
    return looks


@pytest.mark.parametrize(
    "train",
    [
        {"steps": 3, "eval_every": None},
        {"steps": 25, "eval_every": None},
        {"steps": 12, "eval_every": 4},
        {"steps": 13, "eval_every": 4},
    ],
)
def test_the_evaluations_counted_are_those_that_are_made(
    text_file: Path, tmp_path: Path, train: dict[str, Any]
) -> None:
    """As many as the records of a run have, however often it is asked to look, and the one of the whole split."""
    config = tiny_config(text_file, train=train)
    run = finish(config, tmp_path)
    made = sum("val/loss" in record for record in run.metrics())
    assert made + 1 == len(evaluations(config, tmp_path))


def test_what_is_evaluated(text_file: Path, tmp_path: Path) -> None:
    """train.eval_tokens, also at the end, at most the split, then all of it; twice with a capacity; and windows for the pseudo-perplexity."""
    short = {"eval_tokens": 100, "eval_every": None}
    config = tiny_config(text_file, train=short)
    val_tokens = load_run_data(config, tmp_path).meta["val_tokens"]
    assert [100] * 6 + [val_tokens] == evaluations(config, tmp_path)
    assert [val_tokens] * 7 == evaluations(tiny_config(text_file, train={**short, "eval_tokens": 10**6}), tmp_path)
    limited = tiny_config(text_file, capacity=1.0, train=short)
    assert [val_tokens] * 2 == evaluations(limited, tmp_path)[6:]
    sliding = tiny_config(text_file, eval={"stride": 4}, train=short)
    assert [100] * 6 + [4 * val_tokens] == evaluations(sliding, tmp_path)
    bert = tiny_config(text_file, train=short, **TINY["bert"])
    assert [val_tokens, 32 * 16] == evaluations(bert, tmp_path)[6:]
    timed = tiny_config(text_file, train={"steps": None, "minutes": 1.0, "eval_tokens": 100, "eval_every": 7})
    step = step_work(timed, estimate_cost(timed, 256)).seconds(1e9, 1)
    assert int(60 / step / 7) == len(evaluations(timed, tmp_path)) - 2


def test_any_number_of_evaluations_is_counted_at_once(text_file: Path, tmp_path: Path) -> None:
    """Time grows with them, and the forecast's own does not: ten times the steps take ten times as long, but for the end."""
    plans = estimate_runs(
        [tiny_config(text_file, train={"steps": steps, "eval_every": 1}) for steps in (10**9, 10**10)], tmp_path, 1e9
    )
    assert plans[1].seconds == pytest.approx(10 * plans[0].seconds, rel=1e-6)


def test_a_plan_looks_at_each_corpus_once(text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sweep's points share a look at the files; another context length or other data need their own."""
    looks: list[Any] = []
    load = module.load_data
    monkeypatch.setattr(module, "load_data", lambda *arguments: looks.append(arguments[:2]) or load(*arguments))
    configs = [tiny_config(text_file, expert=expert) for expert in (2, 4, 8)]
    longer = tiny_config(text_file, model={"context_length": 32})
    plans = estimate_runs([*configs, longer], tmp_path, 1e9)
    assert [2, 4, 8, 4] == [plan.config.expert for plan in plans]
    assert [(longer.data, 16), (longer.data, 32)] == looks


def test_nothing_to_start_from(text_file: Path, tmp_path: Path) -> None:
    """Without train.upcycle_from a model starts from scratch, and no run is looked for."""
    assert check_upcycle(tiny_config(text_file), tmp_path / "nowhere") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model": {"d_expert": 12}},
            "experts of width 12 cannot be copies of a network of width 32, or equal parts of one. Add: match=none model.d_expert=32",
        ),
        ({"model": {"d_expert": 32, "d_model": 8}}, "has model.d_model=16, and this model 8. Add: model.d_model=16"),
        ({"model": {"d_expert": 32, "activation": "relu"}}, "has model.activation=silu, and this model relu"),
        ({"model": {"d_expert": 32, "num_layers": 3}}, "has model.num_layers=2, and this model 3"),
    ],
)
def test_a_model_of_another_shape_is_refused(
    text_file: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The message names the setting and what to add."""
    dense = finish(tiny_config(text_file, expert=1, k=1), tmp_path)
    config = tiny_config(text_file, **changes, train={"upcycle_from": dense.id})
    with pytest.raises(ConfigError) as error:
        check_upcycle(config, tmp_path)
    assert f"train.upcycle_from={dense.id}" in str(error.value)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("held_out", "add"),
    [({"test_fraction": 0.1}, "data.test_fraction=0.0"), ({"val_fraction": 0.2}, "data.val_fraction=0.1")],
)
def test_another_share_of_the_same_data_is_refused(
    text_file: Path, tmp_path: Path, held_out: dict[str, float], add: str
) -> None:
    """A dense source that may have learned from this run's held-out data is refused; other data pass."""
    dense = finish(tiny_config(text_file, expert=1, k=1), tmp_path)
    fits = {"model": {"d_expert": 32}, "train": {"upcycle_from": dense.id}}
    config = tiny_config(text_file, **fits, data=held_out)
    with pytest.raises(ConfigError, match=rf"may have learned from data that this run holds out. Add: {add}"):
        check_upcycle(config, tmp_path)
    check_upcycle(replace(config, data=replace(config.data, path="elsewhere.txt")), tmp_path)


def test_what_cannot_be_upcycled(text_file: Path, tmp_path: Path) -> None:
    """A sparse run, a run that was never begun, a run of other characters, a run that is not there, and `latest`."""
    fits = {"model": {"d_expert": 32}}
    sparse = finish(tiny_config(text_file), tmp_path)
    with pytest.raises(ConfigError, match=r"is itself sparse \(4x2\)"):
        check_upcycle(tiny_config(text_file, **fits, train={"upcycle_from": sparse.id}), tmp_path)
    begun = create_run(tmp_path, "runs", tiny_config(text_file, expert=1, k=1, seed=5))
    with pytest.raises(ConfigError, match=rf"has no checkpoint. Finish it: moe train --resume {begun.id}"):
        check_upcycle(tiny_config(text_file, **fits, train={"upcycle_from": begun.id}), tmp_path)
    other = tmp_path / "other.txt"
    other.write_text(words(4000, seed=3))
    of_chars = {"data": TextFilesConfig(path=str(other), tokenizer="chars", bpe_vocab=None)}
    dense = finish(tiny_config(text_file, expert=1, k=1, **of_chars), tmp_path)
    reader = tiny_config(text_file, **fits, train={"upcycle_from": dense.id})
    with pytest.raises(ConfigError, match="text, chars"):
        check_upcycle(reader, tmp_path)
    check_upcycle(replace(reader, **of_chars), tmp_path)
    with pytest.raises(RunNotFound, match="gpt-nothing"):
        check_upcycle(tiny_config(text_file, train={"upcycle_from": "gpt-nothing"}), tmp_path)
    with pytest.raises(ConfigError, match=r"train\.upcycle_from=latest changes with every run"):
        tiny_config(text_file, train={"upcycle_from": "latest"})


def test_one_tokenizer_reads_many_texts(text_file: Path, tmp_path: Path) -> None:
    """Tokens of one tokenizer.json mean the same in any text, wherever the file lies; those of another do not."""
    pytest.importorskip("tokenizers")
    text = Path(text_file).read_text()
    files = [tmp_path / f"{name}.json" for name in ("one", "copy", "other")]
    for file, size in zip(files, (300, 300, 310), strict=True):
        file.write_text(train_bpe(iter([text]), size).json)
    other = tmp_path / "other.txt"
    other.write_text(words(6000, seed=3))
    first, second = (TextFilesConfig(path=str(path), tokenizer=str(files[0])) for path in (text_file, other))
    dense = finish(tiny_config(text_file, expert=1, k=1, data=first), tmp_path)
    fits = {"model": {"d_expert": 32}, "train": {"upcycle_from": dense.id}}
    check_upcycle(tiny_config(text_file, **fits, data=second), tmp_path)
    check_upcycle(tiny_config(text_file, **fits, data=replace(second, tokenizer=str(files[1]))), tmp_path)
    with pytest.raises(ConfigError, match="reads other tokens"):
        check_upcycle(tiny_config(text_file, **fits, data=replace(second, tokenizer=str(files[2]))), tmp_path)
    files[0].write_text(files[2].read_text())  # the run's own file has changed since: what it was counts
    with pytest.raises(ConfigError, match="reads other tokens"):
        check_upcycle(tiny_config(text_file, **fits, data=second), tmp_path)


def test_experts_that_score_themselves_cannot_be_copies(text_file: Path, tmp_path: Path) -> None:
    """Equal experts have equal activations: every token would go to those of the lowest index."""
    dense = finish(tiny_config(text_file, expert=1, k=1), tmp_path)
    config = tiny_config(
        text_file, model={"d_expert": 32}, router=TopKConfig(score="activation"), train={"upcycle_from": dense.id}
    )
    with pytest.raises(ConfigError, match=r"makes all experts equal, and router\.score=activation"):
        check_upcycle(config, tmp_path)


def test_the_source_is_pinned(text_file: Path, tmp_path: Path) -> None:
    """Whatever name it was given, a run keeps its source's place; one from elsewhere its whole path."""
    dense = finish(tiny_config(text_file, expert=1, k=1), tmp_path)
    for name in (dense.id, "gpt-dense", str(dense.path)):
        config = tiny_config(text_file, model={"d_expert": 32}, train={"upcycle_from": name})
        assert resolve_upcycle_source(config, tmp_path).train.upcycle_from == f"runs/{dense.id}"
    assert resolve_upcycle_source(config, tmp_path / "other").train.upcycle_from == str(dense.path)
    plain = tiny_config(text_file)
    assert resolve_upcycle_source(plain, tmp_path) is plain


@pytest.mark.parametrize(
    ("train", "device", "expected"),
    [
        ({"compile": "off", "minutes": 60.0}, "cpu", False),
        ({"compile": "on"}, "cuda", True),
        ({"minutes": 10.0}, "cpu", True),
        ({"minutes": 9.0}, "cpu", False),
        ({"minutes": 10.0}, "cuda", False),
        ({"flops": 1.01 * COMPILE_FLOPS}, "cpu", True),
        ({"flops": 0.99 * COMPILE_FLOPS}, "cpu", False),
        ({"flops": 1.01 * COMPILE_FLOPS, "threads": 2}, "cpu", True),
    ],
)
def test_what_is_compiled(text_file: Path, train: dict[str, Any], device: str, expected: bool) -> None:
    """train.compile=auto: trainings of ten minutes and more on a CPU, judged by the budget alone."""
    assert expected == should_compile(tiny_config(text_file, train={"steps": None, **train}), 256, device)


def test_nothing_is_compiled_where_it_cannot_be(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """auto leaves it out in several processes; and a run without a C++ compiler goes without, and records that."""
    long = {"steps": None, "minutes": 60.0}
    together = tiny_config(text_file, train=long, launch=LaunchConfig(num_processes=2))
    assert not should_compile(together, 256, "cpu")
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CXX", raising=False)
    assert not has_compiler()


@pytest.mark.parametrize(
    "budget", [{"flops": 1.01 * COMPILE_FLOPS}, {"flops": 0.99 * COMPILE_FLOPS}, {"minutes": 10.0}]
)
def test_the_machine_has_no_say_in_what_is_compiled(
    text_file: Path, budget: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither cores nor the environment change the decision: it is the same on every machine."""
    config = tiny_config(text_file, train={"steps": None, "threads": None, **budget})
    found = set()
    for cores, threads, path in itertools.product((1, 64), ("", "1", "16"), ("", "/usr/bin")):
        monkeypatch.setattr("moe_cli.execution.machine.count_cores", lambda cores=cores: cores)
        monkeypatch.setenv("OMP_NUM_THREADS", threads)
        monkeypatch.setenv("PATH", path)
        found.add(should_compile(config, 256, "cpu"))
    assert 1 == len(found)


def test_the_cost_of_a_run_is_counted_once(text_file: Path, tmp_path: Path) -> None:
    """Threads, steps, compilation, time and memory of an estimate read the same count."""
    config = tiny_config(text_file, train={"steps": None, "flops": 1e9, "threads": None})
    estimate_cost.cache_clear()
    (estimate,) = estimate_runs([config], tmp_path, 1e9)
    should_compile(config, model_vocab_size(config, estimate.corpus), "cpu")
    assert 1 == estimate_cost.cache_info().misses
