"""The files of conf/sweep: what their parts mean, what is typed over them, and what is refused."""

from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.compose import Composer
from moe_cli.config.settings import packaged_conf
from moe_cli.config.sweep_file import Block, Dimension, SweepFile, list_sweeps, load_sweep_file
from moe_cli.config.training import BUDGETS
from moe_cli.errors import ConfigError
from tests.config.test_compose import write

CONF = packaged_conf()
NO_BUDGETS = {f"train.{name}": None for name in BUDGETS}


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def read(folder: Path, text: str, preset: str = "laptop") -> SweepFile:
    return load_sweep_file(Composer(write(folder, sweep__mine=text)), "mine", preset)


def settings(sweep: SweepFile) -> list[dict[str, Any]]:
    return [values for block in sweep.blocks for values in block.settings()]


def test_a_sweep_file_is_its_fixed_values_and_its_grid(tmp_path: Path) -> None:
    """`set` gives one value, `grid` several, which multiply; one value needs no list."""
    sweep = read(tmp_path, "# Which?\ngrid:\n  k: [1, 2]\n  router: topk\nset:\n  train.steps: 5\nseeds: 3\n")
    assert ("mine", "Which?", 3) == (sweep.name, sweep.question, sweep.seeds)
    assert [{"train.steps": 5, "k": k, "router": "topk"} for k in (1, 2)] == settings(sweep)


def test_what_a_sweep_has_unless_it_says_more(tmp_path: Path) -> None:
    """One seed, and the dense model as its baseline; `baseline: null` is none."""
    sweep = read(tmp_path, "grid:\n  k: [1]\n")
    assert (1, {"expert": 1}, [{"k": 1}]) == (sweep.seeds, sweep.baseline, settings(sweep))
    assert read(tmp_path, "grid: {k: [1]}\nbaseline: null\n").baseline is None
    assert {"router": "random"} == read(tmp_path, "grid: {k: [1]}\nbaseline: {router: random}\n").baseline


def test_zipped_keys_advance_together(tmp_path: Path) -> None:
    """Rows, not the product; the grid multiplies them."""
    found = settings(read(tmp_path, "zip: {expert: [8, 16], k: [1, 2]}\ngrid: {capacity: [null, 1.0]}\n"))
    assert [
        {"capacity": capacity, "expert": expert, "k": k} for capacity in (None, 1.0) for expert, k in ((8, 1), (16, 2))
    ] == found


def test_points_are_partial_configurations(tmp_path: Path) -> None:
    """Each as it is written, with what holds for all."""
    found = settings(read(tmp_path, "points: [{expert: 1}, {expert: 8, k: 2}]\nset: {model.d_ff: 64}\n"))
    assert [{"model.d_ff": 64, "expert": 1}, {"model.d_ff": 64, "expert": 8, "k": 2}] == found


def test_keys_next_to_union_hold_for_every_block(tmp_path: Path) -> None:
    """The blocks one after the other, each times the shared grid; a block's own word on a key holds."""
    text = "grid: {capacity: [1, 2]}\nset: {k: 1}\nwhere: k < 3\nunion:\n- set: {expert: 1}\n- {grid: {expert: [4], k: [2]}, where: expert > k}\n"
    sweep = read(tmp_path, text)
    assert [
        {"k": 1, "capacity": 1, "expert": 1},
        {"k": 1, "capacity": 2, "expert": 1},
        {"k": 2, "capacity": 1, "expert": 4},
        {"k": 2, "capacity": 2, "expert": 4},
    ] == settings(sweep)
    assert [["k < 3"], ["k < 3", "expert > k"]] == [[each.text for each in block.where] for block in sweep.blocks]


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        ("range(1,9,2)", [1, 3, 5, 7]),
        ("choice(2,4)", [2, 4]),
        ("3", [3]),
        ("['range(1,9,2)']", ["range(1,9,2)"]),
        ("null", [None]),
    ],
)
def test_a_grid_knows_hydras_grammar(written: str, expected: list[Any], tmp_path: Path) -> None:
    """As on the command line, where it is not within a list."""
    assert expected == [values["k"] for values in settings(read(tmp_path, f"grid:\n  k: {written}\n"))]


def test_a_glob_expands_to_the_choices_it_matches(composer: Composer, tmp_path: Path) -> None:
    """`glob(s*,exclude=...)` over the files of a group, sorted as `moe config --groups` lists them."""
    found = settings(read(tmp_path, "grid: {balance: 'glob([s*,z],exclude=switch)'}\n"))
    assert [name for name in composer.choices("balance") if name == "z"] == [values["balance"] for values in found]
    everything = settings(read(tmp_path, "grid: {balance: glob(*)}\n"))
    assert composer.choices("balance") == [values["balance"] for values in everything]


@pytest.mark.parametrize("name", BUDGETS)
def test_a_budget_is_one_and_the_others_are_null(name: str, tmp_path: Path) -> None:
    """So that a choice of `train` with a budget of its own gives way."""
    found = settings(read(tmp_path, f"grid: {{k: [1]}}\nbudget: {{{name}: 1e3}}\n"))
    assert [{**NO_BUDGETS, f"train.{name}": 1000.0, "k": 1}] == found


def test_match_is_a_setting(tmp_path: Path) -> None:
    """A shorter way to write it."""
    assert [{"match": "total", "k": 1}] == settings(read(tmp_path, "grid: {k: [1]}\nmatch: total\n"))


PRESETS = """
grid: {expert: [4, 8], k: [1]}
set: {model.d_ff: 64}
budget: {steps: 10}
presets:
  workstation: {grid: {expert: [16]}, set: {model.d_model: 32}, seeds: 5}
  cluster: {budget: {tokens: 100}, zip: {model.num_layers: [2, 3]}}
"""


def test_a_preset_replaces_what_it_names(tmp_path: Path) -> None:
    """`grid` and `set` key by key, other parts whole; the file itself is the laptop's."""
    steps, tokens = {**NO_BUDGETS, "train.steps": 10}, {**NO_BUDGETS, "train.tokens": 100}
    assert [{"model.d_ff": 64, **steps, "expert": expert, "k": 1} for expert in (4, 8)] == settings(
        read(tmp_path, PRESETS)
    )
    larger = read(tmp_path, PRESETS, "workstation")
    assert (5, [{"model.d_ff": 64, "model.d_model": 32, **steps, "expert": 16, "k": 1}]) == (
        larger.seeds,
        settings(larger),
    )
    assert [
        {"model.d_ff": 64, **tokens, "expert": expert, "k": 1, "model.num_layers": layers}
        for expert in (4, 8)
        for layers in (2, 3)
    ] == settings(read(tmp_path, PRESETS, "cluster"))


def test_presets_of_a_base_are_changed_part_by_part(tmp_path: Path) -> None:
    """`defaults: [_presets]` gives those of the packaged file; a preset of the file itself adds to the one of that name."""
    text = "defaults: [_presets, _self_]\ngrid: {k: [1]}\nbudget: {steps: 10}\npresets: {cluster: {set: {expert: 4}}}\n"
    assert 3 == read(tmp_path, text, "workstation").seeds
    (found,) = settings(read(tmp_path, text, "cluster"))
    assert {"experiment": "size/cluster", "expert": 4, "train.tokens": 1e9, "k": 1}.items() <= found.items()
    with pytest.raises(ConfigError, match=r"^.*: defaults: there is no conf/sweep/_none.yaml\.$"):
        read(tmp_path, text.replace("_presets, _self_", "_none"))


def dimension(**values: list[Any]) -> Dimension:
    ((key, options),) = values.items()
    return Dimension(tuple({key: option} for option in options))


def test_what_is_typed_replaces_a_key_wherever_it_stands() -> None:
    """A typed key replaces a grid's key in place; a key of `zip` leaves its rows, which merge, and goes to the end."""
    rows = Dimension(({"a": 1, "b": 1}, {"a": 2, "b": 1}))
    block = Block((dimension(c=[1, 2]), rows))
    assert (dimension(c=[3]), rows) == block.with_dimension(dimension(c=[3])).dimensions
    assert (dimension(c=[1, 2]), dimension(b=[1]), dimension(a=[5])) == block.with_dimension(
        dimension(a=[5])
    ).dimensions
    assert (dimension(c=[1, 2]), rows, dimension(d=[5])) == block.with_dimension(dimension(d=[5])).dimensions


def test_one_budget_replaces_another() -> None:
    """Whatever it was, a budget that is typed is the only one; null takes none away."""
    block = Block((Dimension(({"train.flops": 1e9},)), Dimension(({"k": 1},))))
    steps = Dimension(({"train.steps": 2},))
    assert [{"k": 1, "train.steps": 2}] == list(block.with_dimension(steps).settings())
    nothing = Dimension(({"train.steps": None},))
    assert [{"train.flops": 1e9, "k": 1, "train.steps": None}] == list(block.with_dimension(nothing).settings())


def test_sweeps_of_the_user_and_ours_are_listed_once(tmp_path: Path) -> None:
    """Names of both folders and of folders in them, each once; the user's file is the one that is read."""
    ours = {
        file.relative_to(CONF / "sweep").with_suffix("").as_posix() for file in (CONF / "sweep").rglob("[!_]*.yaml")
    }
    grid = "grid:\n  k: [1]\n"
    composer = Composer(write(tmp_path, sweep__router=grid, sweep__aaa=grid, sweep__paper__mine=grid))
    assert {"aaa", "paper/mine", *ours} == set(list_sweeps(composer))
    assert len({"aaa", "paper/mine", *ours}) == len(list_sweeps(composer))
    assert [{"k": 1}] == settings(load_sweep_file(composer, "router"))
    assert [{"k": 1}] == settings(load_sweep_file(composer, "paper/mine"))


SWEEP_HOLDS = "There are: grid, zip, points, set, match, budget, where, union, search, tune, seeds, baseline, baseline_budgets, presets."
NO_SWEEP = "a sweep must hold some of: grid, zip, points, set, match, budget, where, union, search, tune, seeds, baseline, baseline_budgets, presets."
VARIES = "a sweep must hold what varies: grid, zip, points, union or search."
GRID = "grid must hold settings, as in: grid: {expert: [1, 8]}"
POINTS = "points must be a list of partial configurations, as in: points: [{expert: 1}, {expert: 8, k: 2}]"
BUDGET = "budget must hold one of steps, tokens, flops, model_flops, minutes, not:"
UNION = "union must be a list of blocks, each with some of: grid, zip, points, set, match, budget, where."
BASELINE = "baseline must be a partial configuration, as in: baseline: {expert: 1}. Without one: null"
WHERE = "where must be a condition or a list of them, as in: where: k <= expert"
WRONG = [
    ("", NO_SWEEP),
    ("- 1\n", NO_SWEEP),
    ("set:\n  k: 1\n", VARIES),
    ("seeds: 3\n", VARIES),
    ("grid: 3\n", GRID),
    ("grid: {}\n", GRID),
    ("grid: {k: [1]}\nset: 3\n", "set must hold settings, as in: set: {expert: 8}"),
    ("grid: {k: [1]}\nset: {expert: [1, 2]}\n", "set.expert must be one value. Several stand in grid."),
    ("gird: {k: [1]}\n", f"no part 'gird' in a sweep. Did you mean 'grid'? {SWEEP_HOLDS}"),
    ("grid: {k: [1]}\nexec: x\n", f"no part 'exec' in a sweep. {SWEEP_HOLDS}"),
    ("grid:\n  k: []\n", "grid.k names no value."),
    ("grid: {k: {a: 1}}\n", "grid.k must be a list of values."),
    ("grid: {seed: [1, 2]}\n", "the seed is no setting of a sweep. Write: seeds: 3"),
    (
        "grid: {k: 'interval(1,4)'}\n",
        "'k=interval(1,4)' is an interval, from which only a search draws. Add --sampler random, or write: k=1,4",
    ),
    (
        "grid: {k: glob(*)}\n",
        "'k=glob([*])' chooses among files, and only groups have them: "
        "model, task, router, balance, data, optim, train, experiment.",
    ),
    ("grid: {optim: glob(x*)}\n", "'optim=glob([x*])' finds none of: adamw, muon, sgd."),
    ("zip: {k: 1}\n", "zip.k must be a list of values."),
    (
        "zip: {expert: [1, 2, 4], k: [1, 2]}\n",
        "zip: keys advance together, so each needs as many values as the others, not: expert 3 and k 2.",
    ),
    ("grid: {k: [1]}\nzip: {expert: [1], k: [1]}\n", "k stands in grid and in zip: give it once."),
    ("points: []\n", POINTS),
    ("points: {expert: 1}\n", POINTS),
    ("points: [expert, k]\n", POINTS),
    ("grid: {k: [1]}\nset: {match: none}\nmatch: total\n", "match stands in set and in match: give it once."),
    (
        "grid: {k: [1]}\nset: {train.steps: 5}\nbudget: {flops: 5}\n",
        "train.steps stands in set and in budget: give it once.",
    ),
    ("grid: {k: [1]}\nbudget: {tokens: 5, flops: 1}\n", f"{BUDGET} tokens, flops."),
    ("grid: {k: [1]}\nbudget: {hours: 5}\n", f"{BUDGET} hours."),
    ("grid: {k: [1]}\nbudget: {}\n", f"{BUDGET} nothing."),
    ("grid: {k: [1]}\nbudget: 5\n", f"{BUDGET} 5."),
    ("grid: {k: [1]}\nbudget: {steps: many}\n", "budget: steps: many is not a number above 0."),
    ("grid: {k: [1]}\nbudget: {steps: 0}\n", "budget: steps: 0 is not a number above 0."),
    ("grid: {k: [1]}\nwhere: 3\n", WHERE),
    ("grid: {k: [1]}\nwhere: [k < 3, 3]\n", WHERE),
    ("grid: {k: [1]}\nwhere: k = 3\n", "'k = 3' cannot be read as a condition. Write == to compare."),
    (
        "grid: {k: [1]}\nwhere: open(k)\n",
        "'open(k)' in 'open(k)' is not allowed: use comparisons, and, or, not, in, + - * /.",
    ),
    ("union: []\n", UNION),
    ("union: {k: 1}\n", UNION),
    (
        "union: [{seeds: 3}]\n",
        "no part 'seeds' in a block of union. There are: grid, zip, points, set, match, budget, where.",
    ),
    ("grid: {k: [1]}\nbaseline: dense\n", BASELINE),
    ("grid: {k: [1]}\nbaseline: {}\n", BASELINE),
    (
        "grid: {k: [1]}\npresets: 3\n",
        "presets must hold names and their changes; 'laptop' is the file without a preset.",
    ),
    (
        "grid: {k: [1]}\npresets: {laptop: {seeds: 2}}\n",
        "presets must hold names and their changes; 'laptop' is the file without a preset.",
    ),
    ("grid: {k: [1]}\nseeds: 0\n", "seeds=0 is not a whole number of at least 1 and at most 10000."),
]


@pytest.mark.parametrize(("text", "message"), WRONG, ids=[text for text, _ in WRONG])
def test_a_sweep_file_of_another_shape_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """An error in a sweep file names its path."""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert f"{tmp_path / 'sweep' / 'mine.yaml'}: {message}" == str(error.value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            PRESETS,
            "no preset 'workstaton' in the sweep mine. Did you mean 'workstation'? There are: laptop, workstation, cluster.",
        ),
        ("grid: {k: [1]}\n", "no preset 'workstaton' in the sweep mine. There are: laptop."),
        (
            "grid: {k: [1]}\npresets: {workstaton: {presets: {}}}\n",
            "no part 'presets' in the preset workstaton. Did you mean 'set'? There are: "
            "grid, zip, points, set, match, budget, where, union, search, tune, seeds, baseline, baseline_budgets.",
        ),
    ],
)
def test_a_preset_that_is_not_there_is_refused(text: str, message: str, tmp_path: Path) -> None:
    """With the presets that the sweep has."""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text, "workstaton")
    assert f"{tmp_path / 'sweep' / 'mine.yaml'}: {message}" == str(error.value)


@pytest.mark.parametrize("text", ["grid: [\n", "5\n", "grid:\n  k: ${nothing}\n"])
def test_a_sweep_file_that_cannot_be_read_is_refused(text: str, tmp_path: Path) -> None:
    """Broken yaml, a bare value and a dangling reference name the file, in at most three lines."""
    with pytest.raises(ConfigError) as error:
        read(tmp_path, text)
    assert str(error.value).startswith(f"{tmp_path / 'sweep' / 'mine.yaml'}: ")
    assert len(str(error.value).splitlines()) <= 3


def test_an_unknown_sweep_is_refused_with_those_there_are(composer: Composer) -> None:
    """The nearest name, all names, and the way without a file."""
    with pytest.raises(ConfigError) as error:
        load_sweep_file(composer, "ruoter")
    names = ", ".join(list_sweeps(composer))
    assert f"no sweep 'ruoter'. Did you mean 'router'? There are: {names}. Or give values: moe sweep k=1,2" == str(
        error.value
    )


def test_a_path_names_a_sweep_file(tmp_path: Path) -> None:
    """A file outside conf/ is a sweep of its own, named like the file; a missing file is an error of one line."""
    file = tmp_path / "mine.yaml"
    file.write_text("# Which k is best?\ngrid:\n  k: [1, 2]\n", encoding="utf-8")
    sweep = load_sweep_file(Composer(), str(file))
    assert ("mine", "Which k is best?", 2) == (sweep.name, sweep.question, sweep.blocks[0].num_points)
    with pytest.raises(ConfigError, match=r"^there is no file other\.yaml\. Give a path, or the name of a sweep"):
        load_sweep_file(Composer(), "other.yaml")
