"""Rendered tables: columns, captions, widths, hostile text, and formats for programs."""

import csv
import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.compose import load_config
from moe_cli.errors import ConfigError
from moe_cli.formatting import count, percent, sanitise
from moe_cli.report.aggregate import aggregate_seeds
from moe_cli.report.baseline import baseline_command
from moe_cli.report.baseline_runs import shared_with_dense
from moe_cli.report.columns import make_columns, truncate_left
from moe_cli.report.configuration import JSON_KEYS
from moe_cli.report.intervals import mean_and_interval, paired_difference
from moe_cli.report.load import UNITS, flat_settings, rows_below
from moe_cli.report.price import SPEEDUP_RATIOS
from moe_cli.report.render.tables import csv_text, json_text, markdown_text, report_lines
from moe_cli.report.run_row import settings_of
from moe_cli.report.table import ReportQuery, ReportTable, build_table
from moe_cli.runs.folder import FAILED, PENDING
from tests.report.folders import complete, configure, edit_summary, stopped, sweep_of_three_seeds


def view(outputs: Path, **question: Any) -> ReportTable:
    return build_table(rows_below(outputs), ReportQuery(**question))


def lines(outputs: Path, width: int = 120, **question: Any) -> list[str]:
    return [line.plain for line in report_lines(view(outputs, **question), "sparsity", width)]


def table(outputs: Path, width: int = 120, **question: Any) -> list[str]:
    """The heading and the rows, between the blank lines."""
    text = lines(outputs, width, **question)
    start = text.index("")
    return text[start + 1 : text.index("", start + 1)]


def headings(outputs: Path, width: int = 120, **question: Any) -> list[str]:
    return [heading.strip() for heading in table(outputs, width, **question)[0].split("  ") if heading.strip()]


def test_the_table_of_a_sweep(tmp_path: Path) -> None:
    """Varying settings and results, best first and marked, dense last with dashes."""
    sweep_of_three_seeds(tmp_path)
    assert headings(tmp_path, 80) == ["expert", "k", "params", "bits/byte", "vs baseline", "verdict", "tok/s", "MaxVio"]
    rows = table(tmp_path, 80)[1:]
    assert [row.split()[0] for row in rows] == ["16", "8", "8", "1"]
    assert [row.endswith("  best") for row in rows] == [True, False, False, False]
    difference = paired_difference({0: 1.71, 1: 1.718, 2: 1.726}, {0: 1.83, 1: 1.84, 2: 1.85})
    assert difference is not None
    spread = f"{100 * difference.half_width:.1f}"  # type: ignore[operator]
    bits = [f"{1.718:.3f}", "+-", f"{mean_and_interval([1.71, 1.718, 1.726]).half_width:.3f}"]
    change = [f"{100 * difference.mean:.1f}", "%", "+-", spread]
    assert rows[0].split()[:12] == ["16", "2", "16.0M", *bits, *change, "better", "24.0k"]
    assert rows[-1].split()[:4] == ["1", "-", "1.00M", "1.840"]
    assert rows[-1].split()[6:] == ["0", "24.0k", "-"]


def test_the_best_row_is_bold(tmp_path: Path) -> None:
    """The mark and the weight are on the same row, and on no other."""
    sweep_of_three_seeds(tmp_path)
    rows = report_lines(view(tmp_path), "s", 120)[3:]
    bold = [row.plain for row in rows if any(span.style == "bold" for span in row.spans)]
    assert len(bold) == 1
    assert bold[0].endswith("best")


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
def test_no_line_is_wider_than_the_terminal(tmp_path: Path, width: int) -> None:
    """Whatever the width: the least important columns leave and are named, bits per byte stays."""
    sweep_of_three_seeds(tmp_path)
    complete(tmp_path, 1.75, "sparsity", expert=8, k=2, capacity=1.25, results={"dropped_fraction": 0.034})
    stopped(tmp_path, FAILED, "out of memory: " + "lower train.batch_size " * 9, "sparsity", expert=64, k=8)
    text = lines(tmp_path, width)
    assert max(map(len, text)) <= width
    shown, all_of_them = headings(tmp_path, width), headings(tmp_path, 300)
    assert "bits/byte" in shown
    omitted = " ".join(text).partition("hidden columns: ")[2].partition(" (")[0]
    assert {" ".join(name.split()) for name in omitted.split(",")} - {""} == set(all_of_them) - set(shown)


def test_wider_terminals_show_more(tmp_path: Path) -> None:
    """Every column of a narrow table is in a wider one, in the same order."""
    sweep_of_three_seeds(tmp_path)
    narrow, middle, wide = (headings(tmp_path, width) for width in (60, 80, 200))
    assert len(narrow) < len(middle) < len(wide)
    assert [name for name in wide if name in middle] == middle
    assert [name for name in middle if name in narrow] == narrow
    assert {"val loss", "FLOP/token", "active params"} <= set(wide)
    assert not any("no room" in line for line in lines(tmp_path, 200))


def test_columns_are_aligned(tmp_path: Path) -> None:
    """Every interval stands at one place, and a row without one leaves it blank."""
    sweep_of_three_seeds(tmp_path)
    complete(tmp_path, 1.9, "sparsity", expert=2, k=1)
    rows = table(tmp_path)[1:]
    with_interval = [row for row in rows if "+-" in row]
    assert len(with_interval) == 4
    assert len({row.index("+-") for row in with_interval}) == 1
    alone = next(row for row in rows if row.split()[0] == "2")
    assert alone.index("1.900") == next(row.index("1.718") for row in rows if "1.718" in row)


def test_means_of_different_length_are_aligned(tmp_path: Path) -> None:
    """Points stand under points, with an interval and without."""
    for seed in range(2):
        complete(tmp_path, 2.0 + 0.1 * seed, expert=1, seed=seed)
        complete(tmp_path, 1.7, expert=4, seed=seed)
        complete(tmp_path, 1.99 + 0.1 * seed, expert=8, seed=seed)
    rows = [row for row in table(tmp_path) if "%  +" in row.replace("% +-", "%  +-")]
    assert len(rows) == 2
    assert len({row.index(" %") for row in rows}) == 1
    assert len({row.index(" %") - row[: row.index(" %")].rindex(".") for row in rows}) == 1


def test_captions_say_what_is_compared(tmp_path: Path) -> None:
    """Counts, corpus, tokens, sizes, baseline, what is equal, how intervals are made."""
    sweep_of_three_seeds(tmp_path)
    text = "\n".join(lines(tmp_path, 200))
    first = "sparsity   4 configurations, 3 seeds each   python corpus   1.02M tokens   active parameters 1.00M"
    weight = configure().to_dict()["balance"]["weight"]
    same = f"router topk, balance switch {weight:g}, dropless"
    for words in (first, "baseline   expert=1 (dense)", "intervals: 95 %", same):
        assert words in text
    assert "none" not in text
    assert "failed" not in text


def test_a_combined_balance_is_named_with_its_weights(tmp_path: Path) -> None:
    """Where all rows share it, in the caption; where a weight differs, in a column of its own."""
    for weight in (0.05, 0.07):
        complete(tmp_path, 1.7, expert=8, balance="z+switch", balance__switch__weight=weight)
    text = "\n".join(lines(tmp_path, 200))
    assert "balance switch+z 0.001, dropless" in text
    assert headings(tmp_path)[0] == "balance switch weight"


def test_what_varies_is_not_called_equal(tmp_path: Path) -> None:
    """A setting is a column or a constant, never both."""
    complete(tmp_path, 1.7, expert=8, balance="z", capacity=1.25, results={"dropped_fraction": 0.5})
    complete(tmp_path, 1.7, expert=8, balance="switch")
    assert headings(tmp_path)[:2] == ["capacity", "balance"]
    same = next(line for line in lines(tmp_path, 200) if "the same for all" in line)
    assert same.startswith("the same for all: expert 8, k 2, router topk, num_layers")
    assert "dropless" in "".join(table(tmp_path))
    assert "d_model" in same
    assert "d_model " not in "\n".join(lines(tmp_path, 200, columns=("val_bpb", "model.d_model")))


def test_a_weight_that_varies_is_not_called_equal(tmp_path: Path) -> None:
    """The constant balancing loss is named without the weight that has a column of its own."""
    complete(tmp_path, 1.7, expert=8, balance__weight=0.1)
    complete(tmp_path, 1.8, expert=8, balance__weight=0.2)
    assert headings(tmp_path)[0] == "balance weight"
    assert "balance switch, dropless" in "\n".join(lines(tmp_path, 200))


def test_dropped_is_shown_only_where_something_was(tmp_path: Path) -> None:
    """A column of zeros says nothing."""
    complete(tmp_path, 1.7, expert=8)
    assert "dropped" not in headings(tmp_path, 200)
    complete(tmp_path, 1.7, expert=8, capacity=1.25, results={"dropped_fraction": 0.034})
    assert "dropped" in headings(tmp_path, 200)
    assert "3.4 %" in "".join(table(tmp_path, 200))


def test_one_configuration_is_still_a_table(tmp_path: Path) -> None:
    """One run: its id tells which, no interval, no best, and how to get a baseline."""
    run = complete(tmp_path, 1.75, expert=8, k=2)
    text = lines(tmp_path)
    assert text[0].startswith("sparsity   1 configuration, 1 seed   ")
    row = table(tmp_path)[1]
    assert row.startswith(run.id)
    assert "best" not in row
    assert "moe train expert=1" in "\n".join(text)
    assert "only one seed" in "\n".join(text)


def test_only_dense_rows_need_no_baseline(tmp_path: Path) -> None:
    """Without experts there is nothing to compare, and no advice to train what is there."""
    complete(tmp_path, 1.83, expert=1)
    assert {"vs baseline", "MaxVio", "dead"} & set(headings(tmp_path, 200)) == set()
    assert not any("baseline" in line for line in lines(tmp_path))


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"train__steps": 900},
        {"train__tokens": 100_000},
        {"optim": "adamw"},
        {"optim__schedule": "cosine"},
        {"optim__grad_clip": None},
        {"model__d_model": 64, "model__d_ff": 200},
        {"data": "text", "data__path": "/tmp/a b.txt"},
        {"model__shared_experts": 1, "capacity": 1.5},
        {"seed": 4},
    ],
)
def test_the_advised_command_makes_the_baseline(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Parsed as a shell and Hydra would, the command gives a configuration that serves as baseline."""
    import shlex

    complete(tmp_path, 1.7, expert=8, **settings)
    row = aggregate_seeds(rows_below(tmp_path)).configurations[0]
    words = shlex.split(baseline_command(row))
    assert words[:3] == ["moe", "train", "expert=1"]
    advised = load_config(words[2:]).config
    values = flat_settings(advised.to_dict())
    shared = [name for name in shared_with_dense(settings_of(row.settings)) if row[name] is not None or name in values]
    assert {name: values.get(name) for name in shared} == {name: row[name] for name in shared}
    assert advised.seed == settings.get("seed", 0)


def test_the_advised_command_covers_all_seeds(tmp_path: Path) -> None:
    """Several seeds are a sweep over them."""
    for seed in (0, 2):
        complete(tmp_path, 1.7, expert=8, seed=seed)
    words = baseline_command(aggregate_seeds(rows_below(tmp_path)).configurations[0]).split()
    assert (words[:3], words[-1]) == (["moe", "sweep", "expert=1"], "seed=0,2")


def test_mixed_budgets_are_said_and_ranked_apart(tmp_path: Path) -> None:
    """A longer run does not win; the advice names the budget."""
    for expert, steps, val_bpb in ((4, 500, 1.8), (8, 500, 1.7), (4, 900, 1.6), (8, 900, 1.5), (1, 500, 2.0)):
        complete(tmp_path, val_bpb, expert=expert, train__steps=steps)
    text = "\n".join(lines(tmp_path))
    assert [row.split()[0] + row.split()[1] for row in table(tmp_path)[1:] if row.endswith("best")] == ["8900", "8500"]
    assert "different budgets" in text
    assert "baseline   2 of 4 sparse configurations have no dense model to compare with. Train it:" in text
    assert "moe train expert=1 train.steps=900" in text
    assert "1.02M to 1.84M tokens" in text


@pytest.mark.parametrize(
    "settings", [{"model__context_length": 64}, {"eval__stride": 32}, {"data__packing": "isolate"}]
)
def test_unlike_evaluation_contexts_are_ranked_apart(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Each context has its own best, and what would make all alike is said; the same window for all is one ranking."""
    for given, contexts in (({}, 64.5), (settings, 32.5)):
        for expert in (4, 8):
            complete(
                tmp_path,
                1.8 + 0.1 * bool(given) - expert / 100,
                expert=expert,
                train__tokens=1_024_000,
                **given,
                results={"eval_context": contexts, "tokens": 1_024_000},
            )
    text = "\n".join(lines(tmp_path, 200))
    assert 2 == sum(row.endswith("best") for row in table(tmp_path))
    assert "validation context 32.5 to 64.5" in text
    assert (
        "different evaluation contexts: rows are ranked within one only. To compare them, set the same eval.context_length"
        in text
    )
    assert "different budgets" not in text


def test_a_ranking_in_bits_and_one_in_nats_are_announced(tmp_path: Path) -> None:
    """A caption says why rows of the same text are not ranked together."""
    complete(tmp_path, 1.8, expert=4)
    edit_summary(complete(tmp_path, 1.7, expert=8, data__tokenizer="chars").path, val_bpb=None)
    text = "\n".join(lines(tmp_path, 200))
    assert (
        "different units of the loss: bits per byte, or nats per token of a tokenizer. Rows are ranked within" in text
    )
    assert "best" not in "\n".join(table(tmp_path))


def test_one_window_for_all_is_one_ranking(tmp_path: Path) -> None:
    """Models of unlike context lengths that are evaluated in windows of one length are compared."""
    for length, val_bpb in ((64, 1.8), (128, 1.7)):
        window = {"eval__context_length": 64, "model__context_length": length}
        complete(
            tmp_path,
            val_bpb,
            expert=8,
            train__tokens=1_024_000,
            **window,
            results={"tokens": 1_024_000, "eval_context": 32.5},
        )
    assert ["128", "64"] == [row.split()[0] for row in table(tmp_path)[1:]]
    assert 1 == sum(row.endswith("best") for row in table(tmp_path))
    assert "different" not in "\n".join(lines(tmp_path, 200))
    assert "validation context 32.5" in "\n".join(lines(tmp_path, 200))


def test_steps_of_unlike_contexts_are_unlike_budgets(tmp_path: Path) -> None:
    """Equal steps of another context length are other tokens, and it is said which budget would be one."""
    for length in (64, 128):
        complete(tmp_path, 1.8, expert=8, eval__context_length=64, model__context_length=length)
    text = "\n".join(lines(tmp_path, 200))
    assert "within one budget only. At several values of model.context_length, equal steps are not equal tokens" in text


@pytest.mark.parametrize(
    ("drop", "said"),
    [
        (
            "causal",
            "loss @ capacity: at the capacity of training, counted over each sequence; no later token takes the place",
        ),
        ("position", "loss @ capacity: at the capacity of training, drop=position"),
    ],
)
def test_how_a_limited_loss_dropped_is_said(tmp_path: Path, drop: str, said: str) -> None:
    """Below the table that shows it."""
    complete(tmp_path, 1.8, capacity=1.25, results={"capacity_val_loss": 1.2345, "capacity_val_drop": drop})
    assert said in "\n".join(lines(tmp_path, 200))


def test_a_loss_that_sees_later_tokens_is_said(tmp_path: Path) -> None:
    """Where eval.drop asks for it in a causal model; not by default, nor in a model that sees all."""
    complete(tmp_path, 1.8, expert=8, eval__capacity=1.0)
    complete(tmp_path, 1.8, expert=16, model="bert", eval__capacity=1.0, eval__drop="random")
    assert "sees later tokens" not in "\n".join(lines(tmp_path, 200))
    complete(tmp_path, 1.8, expert=32, eval__capacity=1.0, eval__drop="probability")
    assert "val loss: drop=probability sees later tokens" in "\n".join(lines(tmp_path, 200))


def test_mixed_corpora_are_said(tmp_path: Path) -> None:
    """Rows on different data get one line that names them."""
    complete(tmp_path, 1.7, expert=4)
    complete(tmp_path, 1.7, expert=8, results={"corpus_sha256": "cd" * 32, "corpus": "notes"})
    complete(tmp_path, 1.7, expert=16, results={"corpus_sha256": None, "corpus": None})
    warned = [line for line in report_lines(view(tmp_path), "s", 200) if "different data" in line.plain]
    assert len(warned) == 1
    assert "different data: notes cdcdcd, python ababab." in warned[0].plain
    assert warned[0].style == "yellow"


def test_of_many_corpora_those_without_room_are_counted(tmp_path: Path) -> None:
    """Four are named."""
    for number, expert in enumerate((1, 2, 4, 8, 16, 32)):
        complete(tmp_path, 1.8, expert=expert, k=1, results={"corpus": f"c{number}", "corpus_sha256": f"{number}" * 64})
    (line,) = [line.plain for line in report_lines(view(tmp_path), "s", 200) if "different data" in line.plain]
    assert "different data: c0 000000, c1 111111, c2 222222, c3 333333 and 2 more." in line


def test_corpora_of_one_name_are_counted_alike_above_and_below(tmp_path: Path) -> None:
    """By what is in them."""
    for number, expert in enumerate((1, 2, 4, 8, 16, 32)):
        complete(tmp_path, 1.8, expert=expert, k=1, results={"corpus": "text", "corpus_sha256": f"{number}" * 64})
    text = lines(tmp_path, 200)
    assert "6 corpora" in text[0]
    assert "and 2 more" in "".join(text)


def mixed(outputs: Path) -> None:
    """Makes two language and two image models; one image model has the lowest loss of all, the other the highest."""
    for expert, loss in ((4, 3.0), (8, 3.4)):
        complete(outputs, loss, expert=expert)
    for expert, loss in ((4, 1.0), (8, 4.9)):
        results = {"corpus": "digits", "corpus_sha256": "cd" * 32}
        run = complete(outputs, loss, results=results, expert=expert, model="vit", data="digits")
        edit_summary(run.path, val_bpb=None)


def test_what_tells_models_apart_stands_first(tmp_path: Path) -> None:
    """Model, task and data have room before any number, also in a narrow terminal."""
    mixed(tmp_path)
    for width in (60, 80, 200):
        assert ["model", "task", "data", "expert"] == headings(tmp_path, width)[:4]


def test_losses_of_unlike_tasks_are_ranked_apart(tmp_path: Path) -> None:
    """Rows of one task stand together, each has its best, and it is said that nats of one are not those of the other."""
    mixed(tmp_path)
    rows = table(tmp_path, 80)[1:]
    assert ["vit", "vit", "gpt", "gpt"] == [row.split()[0] for row in rows]
    assert [True, False, True, False] == [row.endswith("best") for row in rows]
    assert "different tasks: nats per image, token do not compare. They are ranked within one task only." in "\n".join(
        lines(tmp_path, 200)
    )


def test_the_line_of_the_baseline_is_folded(tmp_path: Path) -> None:
    """However many settings vary."""
    many = {"data": "bible_kjv", "optim": "adamw", "model__num_layers": 2, "model__d_model": 64, "train__steps": 600}
    for expert in (1, 8):
        complete(tmp_path, 2.0 - 0.1 * expert, expert=expert)
        complete(tmp_path, 2.1 - 0.1 * expert, expert=expert, **many)
    assert "compared at equal data.name, model.num_layers" in " ".join(" ".join(lines(tmp_path, 80)).split())
    assert max(map(len, lines(tmp_path, 80))) <= 80


def test_one_seed_more_is_no_seeds(tmp_path: Path) -> None:
    """The verdict counts as people do."""
    complete(tmp_path, 1.7)
    (column,) = make_columns(["verdict"])
    row = aggregate_seeds(rows_below(tmp_path)).configurations[0]
    said = {more: column.write(replace(row, verdict="inconclusive", more_seeds=more)) for more in (None, 1, 2)}
    assert {None: "inconclusive", 1: "inconclusive, +1 seed", 2: "inconclusive, +2 seeds"} == said


def test_failed_and_pending_runs_are_counted(tmp_path: Path) -> None:
    """They are no rows of the table, but lines below it: how many, and the first reason."""
    complete(tmp_path, 1.7, expert=4)
    failed = stopped(tmp_path, FAILED, "out of memory\nTraceback", expert=64, k=8)
    stopped(tmp_path, FAILED, None, expert=64, k=4)
    stopped(tmp_path, PENDING, expert=32)
    text = lines(tmp_path)
    assert f"2 failed, the first {failed.id}: out of memory" in text
    assert "without results yet: 1 pending; to see them: moe report --runs" in text
    assert len(table(tmp_path)) == 2
    assert len(table(tmp_path, by_run=True)) == 5


def test_nothing_but_failed_runs(tmp_path: Path) -> None:
    """The table then shows them, with status and the first line of the reason instead of results."""
    run = stopped(tmp_path, FAILED, "out of memory\nTraceback", expert=64, k=8)
    assert headings(tmp_path) == ["run", "status", "reason"]
    assert table(tmp_path)[1].split() == [run.id, "failed", "out", "of", "memory"]


def test_filter_keeps_the_baseline(tmp_path: Path) -> None:
    """Rows that are filtered out still serve as baseline."""
    sweep_of_three_seeds(tmp_path)
    assert [row.split()[0] for row in table(tmp_path, condition="k == 2 and expert > 1")[1:]] == ["16", "8"]
    assert "-6.6 %" in "".join(table(tmp_path, condition="expert == 16"))
    assert "-6.6 %" in "".join(table(tmp_path, condition="vs_baseline < -0.05"))
    assert "no row matches --where" in lines(tmp_path, condition="expert > 99")


@pytest.mark.parametrize(
    ("sort", "expected"), [("expert", [1, 8, 8, 16]), ("-expert", [16, 8, 8, 1]), (None, [16, 8, 8, 1])]
)
def test_sort(tmp_path: Path, sort: str | None, expected: list[int]) -> None:
    """By any column, either way; fewest bits per byte first by default."""
    sweep_of_three_seeds(tmp_path)
    assert [row["expert"] for row in view(tmp_path, sort=sort).rows] == expected


@pytest.mark.parametrize("sort", ["val_bpb", "-val_bpb", "max_violation", "-max_violation"])
def test_rows_without_the_value_are_last_either_way(tmp_path: Path, sort: str) -> None:
    """Null is neither small nor large."""
    sweep_of_three_seeds(tmp_path)
    stopped(tmp_path, PENDING, expert=32)
    values = [row[sort.removeprefix("-")] for row in view(tmp_path, sort=sort).all_rows]
    missing = [value is None for value in values]
    assert missing == sorted(missing)
    assert True in missing


def test_columns_are_shown_as_asked_for(tmp_path: Path) -> None:
    """Those, in that order, even when they do not vary."""
    sweep_of_three_seeds(tmp_path)
    asked = ("val_bpb", "model.d_model", "seeds", "router")
    assert headings(tmp_path, columns=asked) == ["bits/byte", "d_model", "seeds", "router"]
    width = str(configure().model.d_model)
    assert table(tmp_path, columns=("expert", "model.d_model", "seeds"))[1].split()[:3] == ["16", width, "0,1,2"]


@pytest.mark.parametrize("question", [{"columns": ("exprt",)}, {"sort": "-exprt"}, {"condition": "exprt > 1"}])
def test_an_unknown_column_is_an_error_with_a_suggestion(tmp_path: Path, question: dict[str, Any]) -> None:
    """Typed columns are checked everywhere."""
    complete(tmp_path, 1.7)
    with pytest.raises(ConfigError, match=r"no column 'exprt'.*Did you mean 'expert'"):
        view(tmp_path, **question)


HOSTILE = "[red]x[/] \x1b[31m\r\n\u202e:smile:|`<b>" + "y" * 80


def test_hostile_names_are_only_text(tmp_path: Path) -> None:
    """Markup, escapes, line breaks and turned writing from a run stay letters on one line."""
    hostile = {"corpus": HOSTILE, "corpus_sha256": HOSTILE, "note": HOSTILE}
    complete(tmp_path, 1.7, HOSTILE.replace("/", ""), expert=4, results=hostile)
    complete(tmp_path, 1.7, expert=8, results={"corpus": HOSTILE})
    stopped(tmp_path, FAILED, HOSTILE, expert=16)
    text = lines(tmp_path, 80, columns=("run", "note", "sweep", "val_bpb"))
    assert all(line.isprintable() for line in text)
    assert "[red]x[/]" in "\n".join(text)
    written = [line.plain for line in report_lines(view(tmp_path), HOSTILE, 80)]
    assert written[0].startswith("...yyy")
    assert len(markdown_text(view(tmp_path, columns=("note", "sweep"))).splitlines()) == 4


def test_markdown_is_not_broken_by_values(tmp_path: Path) -> None:
    """Bars and tags in a value are text."""
    complete(tmp_path, 1.7, results={"note": "a|b <i>`c`"})
    *_, row = markdown_text(view(tmp_path, columns=("note", "seed"))).splitlines()
    assert row == r"| a\|b &lt;i>\`c\` | 0 |"


def test_json_has_exactly_the_plain_keys_and_what_varies(tmp_path: Path) -> None:
    """One object per configuration, failed runs after them, null where there is no value."""
    sweep_of_three_seeds(tmp_path)
    complete(tmp_path, 1.6, "sparsity", expert=8, k=2, train__steps=900)
    stopped(tmp_path, FAILED, "out of memory", "sparsity", expert=64, k=8)
    content = json.loads(json_text(view(tmp_path)), parse_constant=lambda word: pytest.fail(word))
    assert [list(entry) for entry in content] == [[*JSON_KEYS, "train.steps"]] * 6
    assert set(JSON_KEYS) == {
        "run",
        "runs",
        "status",
        "expert",
        "k",
        "capacity",
        "router",
        "balance",
        "seed",
        "seeds",
        "params",
        "active_params",
        "flops_per_token",
        "val_loss",
        "val_bpb",
        "tokens_per_second",
        "max_violation",
        "dropped_fraction",
        "dead_experts",
        "val_loss_interval",
        "val_bpb_interval",
        "vs_baseline",
        "vs_baseline_interval",
        "shared_seeds",
        "verdict",
        "more_seeds",
        "equal_time",
        "equal_time_interval",
        "equal_time_seeds",
        "compute_multiplier",
        "compute_multiplier_low",
        "compute_multiplier_high",
        "relative_speed",
        "relative_speed_low",
        "relative_speed_high",
        "effective_speedup",
        "effective_speedup_low",
        "effective_speedup_high",
        "pareto",
    }
    dense = next(entry for entry in content if entry["expert"] == 1)
    nulls = [
        "capacity",
        "router",
        "balance",
        "seed",
        "max_violation",
        "dropped_fraction",
        "dead_experts",
        "vs_baseline_interval",
        "verdict",
        "more_seeds",
        "equal_time",
        "equal_time_interval",
        *(f"{name}_{limit}" for name in SPEEDUP_RATIOS for limit in ("low", "high")),
    ]
    assert [key for key, value in dense.items() if value is None] == nulls
    assert (dense["k"], dense["vs_baseline"], dense["seeds"]) == (1, 0, [0, 1, 2])
    failed = content[-1]
    assert (failed["status"], failed["expert"], failed["seed"], failed["val_bpb"]) == ("failed", 64, 0, None)
    single = content[0]
    assert (single["seed"], single["seeds"], single["val_bpb_interval"]) == (0, [0], None)


def test_markdown_of_an_empty_best_cell_is_empty(tmp_path: Path) -> None:
    """The best row, being its own baseline, has no verdict: no marks around nothing."""
    for seed in range(2):
        complete(tmp_path, 1.7 + seed / 100, expert=1, seed=seed)
        complete(tmp_path, 1.8 + seed / 100, expert=8, seed=seed)
    text = markdown_text(view(tmp_path))
    assert "**1.705" in text
    assert "****" not in text
    assert {text.splitlines()[0].count("|")} == {line.count("|") for line in text.splitlines()}


def test_json_holds_the_columns_asked_for(tmp_path: Path) -> None:
    """Named columns take the place of the plain keys, whatever they are."""
    complete(tmp_path, 1.7, expert=8)
    content = json.loads(json_text(view(tmp_path, columns=("expert", "train.steps", "corpus"))))
    assert content == [{"expert": 8, "train.steps": 500, "corpus": "python"}]


def test_csv_holds_every_column_to_full_precision(tmp_path: Path) -> None:
    """Read back, the values are those of the frame; counts are whole, null is empty."""
    sweep_of_three_seeds(tmp_path)
    shown = view(tmp_path)
    rows = list(csv.DictReader(io.StringIO(csv_text(shown))))
    assert list(rows[0]) == shown.aggregate.columns
    assert set(UNITS) <= set(rows[0])
    assert [float(row["val_bpb"]) for row in rows] == [row.results.val_bpb for row in shown.all_rows]
    assert (rows[0]["params"], rows[0]["seeds"], rows[0]["capacity"]) == ("16000000", "0 1 2", "")
    assert csv_text(view(tmp_path, columns=("expert", "k"))) == "expert,k\n16,2\n8,2\n8,1\n1,1\n"
    assert csv_text(view(tmp_path, columns=("expert", "k"), condition="k > 9")) == "expert,k\n"


def test_markdown_is_the_whole_table(tmp_path: Path) -> None:
    """The columns of the widest terminal, one row each, the best in bold."""
    sweep_of_three_seeds(tmp_path)
    heading, rule, *rows = markdown_text(view(tmp_path)).splitlines()
    assert [name.strip() for name in heading.strip("|").split("|")] == headings(tmp_path, 300)
    assert {line.count("|") for line in (heading, rule, *rows)} == {heading.count("|")}
    assert [row.startswith("| **16**") for row in rows] == [True, False, False, False]


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (0, "0"),
        (999, "999"),
        (999.6, "1.00k"),
        (9_996, "10.0k"),
        (24_100, "24.1k"),
        (999_499, "999k"),
        (999_500, "1.00M"),
        (1_234_567, "1.23M"),
        (2.89e9, "2.89G"),
        (1e15, "1.00P"),
    ],
)
def test_counts_have_three_digits(value: float, expected: str) -> None:
    """Never 1000k, never a lost zero."""
    assert count(value) == expected


def test_percents() -> None:
    """One digit below ten percent, signs where asked, and no negative zero."""
    assert [percent(share) for share in (0.0, 0.034, 0.21, 0.0996)] == ["0 %", "3.4 %", "21 %", "10 %"]
    assert [percent(share, signed=True) for share in (0.21, -0.05, -0.0001)] == ["+21 %", "-5.0 %", "0 %"]


def test_long_text_keeps_its_end() -> None:
    """Paths and ids differ at the end."""
    assert truncate_left("a" * 36) == "a" * 36
    assert truncate_left("/long/folder/of/many/parts/and/more/file.txt").endswith("file.txt")
    assert len(truncate_left("x" * 99)) == 36
    assert sanitise("a\x1b[31mb\n") == "a?[31mb?"


def test_a_small_interval_is_not_zero(tmp_path: Path) -> None:
    """An interval below the last digit is said to be below it."""
    for seed in range(2):
        complete(tmp_path, 1.7 + 1e-6 * seed, expert=8, seed=seed)
    assert "+- <0.001" in "".join(table(tmp_path))


def test_settings_of_one_name_have_unique_headings(tmp_path: Path) -> None:
    """Headings are unique, and `eval.k` is not `k`."""
    complete(tmp_path, 1.7, expert=8, k=2, eval__k=1)
    complete(tmp_path, 1.7, expert=8, k=1)
    complete(tmp_path, 1.7, expert=8, k=2, eval__k=2, train__steps=600)
    assert headings(tmp_path, 200)[:3] == ["k", "steps", "eval k"]
    assert headings(tmp_path, 200, columns=("k", "steps", "train.steps")) == ["k", "steps", "train.steps"]


def test_the_loss_at_the_training_capacity_has_a_column(tmp_path: Path) -> None:
    """A table of 160 columns shows `loss @ capacity` if a run had a capacity; a table of 80 columns leaves it out."""
    complete(tmp_path, 1.8, capacity=1.25, results={"capacity_val_loss": 1.2345})
    complete(tmp_path, 1.9, expert=4)
    assert "loss @ capacity" in headings(tmp_path, 160)
    assert "loss @ capacity" not in headings(tmp_path, 80)
    place = table(tmp_path, 160)[0].index("loss @ capacity") + len("loss @ capacity")
    assert ["1.234", "-"] == [row[:place].split()[-1] for row in table(tmp_path, 160)[1:]]


def test_one_configuration_of_several_runs_is_not_called_by_one_of_them(tmp_path: Path) -> None:
    """Nothing varies: a single run is named, a row of three seeds tells its experts."""
    complete(tmp_path, 1.7, expert=8, seed=0)
    assert headings(tmp_path)[0] == "run"
    complete(tmp_path, 1.8, expert=8, seed=1)
    assert headings(tmp_path)[:2] == ["expert", "k"]


def test_curves_stand_where_there_is_room(tmp_path: Path) -> None:
    """At 200 columns a falling curve as blocks, highest first; at 80 and 120 none, and never in ASCII."""
    sweep_of_three_seeds(tmp_path)
    for path in tmp_path.glob("sparsity/*/config.json"):
        records = [json.dumps({"step": step, "val/bpb": 8 / step}) for step in (1, 2, 4)]
        (path.parent / "metrics.jsonl").write_text("\n".join(records))
    shown = {width: "\n".join(map(str, report_lines(view(tmp_path), "t", width, True))) for width in (80, 120, 200)}
    assert [False, False, True] == ["█▅▁" in text or "█▄▁" in text for text in shown.values()]
    assert "█" not in "\n".join(map(str, report_lines(view(tmp_path), "t", 200, False)))


def test_what_tokens_are_guessed_without_is_of_one_task(tmp_path: Path) -> None:
    """The line of reference stands under a table of one task, and not where another's losses stand there too."""
    for expert in (1, 8):
        complete(tmp_path, 1.7, expert=expert, model="bert", results={"commonest_accuracy": 0.2})
    assert any("accuracy of the commonest token 20 %" in line for line in lines(tmp_path, 200))
    complete(tmp_path, 1.8, expert=8)
    assert not any("commonest token" in line for line in lines(tmp_path, 200))


def test_runs_of_unequal_precision_are_announced(tmp_path: Path) -> None:
    """A report of float32 and bfloat16 says that it may be unfair."""
    for seed in range(2):
        complete(tmp_path, 1.7, seed=seed, results={"precision": "bfloat16"})
    assert "differ in precision" not in " ".join(lines(tmp_path))
    complete(tmp_path, 1.7, seed=2, results={"precision": "float32"})
    assert "runs differ in precision (bfloat16 2, float32 1)" in " ".join(lines(tmp_path))
