"""The points of a sweep: which, in which order, and which are left out."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from moe_cli import __version__, sweep
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.settings import packaged_conf
from moe_cli.config.sweep_file import list_sweeps, load_sweep_file
from moe_cli.costs.model import estimate_cost, training_steps
from moe_cli.errors import ConfigError
from moe_cli.files.reading import read_json
from moe_cli.files.writing import write_json
from moe_cli.report.sweep_record import record_command
from moe_cli.sweeps.plan import SweepPlan, plan_sweep
from moe_cli.sweeps.search_space import SearchOptions, plan_search, plan_sweep_or_search
from tests.elided import Elided

# The named sweeps that are no searches.
GRIDS = [name for name in list_sweeps(Composer()) if load_sweep_file(Composer(), name).search is None]


def test_grid_is_the_product() -> None:
    """Commas and ranges multiply; points carry the settings that vary."""
    plan = plan_sweep(["expert=4,8", "k=range(1,3)", "train.steps=5"])
    assert [point.label for point in plan.points] == [
        "expert=4 k=1 seed=0",
        "expert=4 k=2 seed=0",
        "expert=8 k=1 seed=0",
        "expert=8 k=2 seed=0",
    ]
    assert {point.config.train.steps for point in plan.points} == {5}


def test_points_equal_single_configurations() -> None:
    """A point is the configuration that `moe train` would run on one thread, so its folder has the same name."""
    plan = plan_sweep(["router=topk,switch", "k=1", "expert=8"])
    for point, router in zip(plan.points, ("topk", "switch"), strict=True):
        words = [f"router={router}", "k=1", "expert=8"]
        assert point.config == load_config([*words, "train.threads=1"]).config
        assert point.config.run_id == load_config(words).config.run_id


def test_impossible_points_are_left_out_with_the_reason() -> None:
    """k > expert leaves its point out, once and not once a seed, and says why."""
    plan = plan_sweep(["expert=2,4", "k=1,3"], seeds=3)
    assert [(point.label, point.reason) for point in plan.left_out] == [("expert=2 k=3", Elided("k=3 ..."))]
    assert (plan.num_configurations, len(plan.points)) == (3, 9)


@pytest.mark.parametrize("ks", ["k=2", "k=1,2", "k=2,4 eval.k=2 capacity=1.25"])
def test_the_dense_point_of_a_sweep_stays(ks: str) -> None:
    """expert=1 sets k aside, as it does the router, so that there is one dense run; a note names k."""
    plan = plan_sweep(["expert=1,4", *ks.split()])
    assert 1 == sum(point.config.dense for point in plan.points)
    assert () == plan.left_out
    assert any("expert=1 is dense" in note and "k" in note for note in plan.notes)


def test_points_that_are_one_network_run_once() -> None:
    """A width that match finds and the same width typed are one run."""
    width = load_config(["expert=4"]).config.model.d_expert
    plan = plan_sweep(["expert=4", f"model.d_expert={width}", "match=active,none"])
    assert (1, 1) == (len(plan.points), plan.num_repeats)


def test_equal_configurations_run_once() -> None:
    """A dense model has no router: its points with each router come to one run."""
    plan = plan_sweep(["expert=1,8", "router=topk,random"])
    assert (len(plan.points), plan.num_repeats) == (3, 1)


def test_seeds_come_outermost() -> None:
    """Every configuration gets its first seed before any gets its second."""
    plan = plan_sweep(["expert=4,8"], seeds=2)
    assert [point.config.seed for point in plan.points] == [0, 0, 1, 1]


def test_settings_in_vain_are_said_once() -> None:
    """A setting without effect in some points is noted once for all of them."""
    assert plan_sweep(["expert=1,4,8", "k=1", "capacity=1.5"]).notes == ("expert=1 is dense: capacity ignored.",)
    assert plan_sweep(["expert=1,4,8", "k=1"]).notes == ()


@pytest.mark.parametrize("name", GRIDS)
def test_named_sweeps(name: str) -> None:
    """Every sweep of conf/sweep has a question as its first line and points that can be run."""
    plan = plan_sweep([name, "train.steps=2"])
    assert plan.question.endswith("?")
    assert plan.name == name.replace("/", "-")
    assert len(plan.points) > 1
    assert {point.config.train.steps for point in plan.points} == {2}


def test_settings_on_the_line_replace_the_files() -> None:
    """moe sweep sparsity k=1 takes k from the line."""
    assert {point.config.k for point in plan_sweep(["sparsity", "k=1"]).points} == {1}


@pytest.mark.parametrize(
    "content", ["grid: 3", "points: []", "grid: {k: [1]}\nexec: x", "grid: {k: [1,2]}\nseeds: 0", "a: [", ""]
)
def test_damaged_sweep_files(content: str, tmp_path: Path) -> None:
    """A sweep file of another shape is an error that names the file, in at most three lines."""
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "mine.yaml").write_text(content)
    with pytest.raises(ConfigError) as error:
        plan_sweep(["mine"], config_dir=tmp_path)
    assert str(tmp_path) in str(error.value)
    assert len(str(error.value).splitlines()) <= 3


def test_no_point_left() -> None:
    """A sweep of impossible points only is an error with the reason."""
    with pytest.raises(ConfigError, match=r"no combination of these settings can be run.\nexpert=2 k=9: k=9 is more"):
        plan_sweep(["expert=2,4", "k=9,10"])


def test_a_seed_list_replaces_the_files_seeds() -> None:
    """moe sweep sparsity seed=3,4 takes exactly these seeds."""
    assert {point.config.seed for point in plan_sweep(["sparsity", "seed=3,4"]).points} == {3, 4}


def mine(folder: Path, text: str, *words: str, **options: Any) -> SweepPlan:
    """The plan of a sweep file with this text."""
    (folder / "sweep").mkdir(exist_ok=True)
    (folder / "sweep" / "mine.yaml").write_text(text)
    return plan_sweep(["mine", *words], config_dir=folder, **options)


def labels(plan: SweepPlan) -> list[str]:
    return [point.label.removesuffix(" seed=0") for point in plan.points]


def test_a_file_of_all_kinds_of_parts(tmp_path: Path) -> None:
    """Blocks one after the other, named by what varies in the sweep; what is said once for all is not in the names."""
    text = """
    set: {model.num_layers: 2}
    budget: {tokens: 4096}
    where: k <= expert
    union:
      - grid: {expert: [1, 4], k: [1, 2]}
      - zip: {expert: [8, 16], k: [2, 4]}
      - points: [{router: hash, k: 1}]
    """
    plan = mine(tmp_path, text)
    assert labels(plan) == [
        "expert=1 k=1",
        "expert=4 k=1",
        "expert=4 k=2",
        "expert=8 k=2",
        "expert=16 k=4",
        "k=1 router=hash",
    ]
    assert {(point.config.model.num_layers, point.config.train.tokens) for point in plan.points} == {(2, 4096)}
    assert (plan.num_excluded, plan.left_out) == (1, ())


def test_conditions_leave_out_and_are_counted() -> None:
    """Points that a condition excludes are counted, not listed as impossible; all conditions must hold."""
    plan = plan_sweep(["expert=2,4,8", "k=1,2,4"], where=["k <= expert", "expert / k == 2"])
    assert labels(plan) == ["expert=2 k=1", "expert=4 k=2", "expert=8 k=4"]
    assert (plan.num_excluded, plan.left_out) == (6, ())


@pytest.mark.parametrize(
    ("words", "where", "expected"),
    [
        (["router=topk,switch", "k=1"], 'router == "switch"', ["router=switch"]),
        (["balance=none,switch+z"], 'balance in ["none", "z"]', ["balance=none"]),
        (["expert=4,8"], "k == 2 and expert > 4", ["expert=8"]),  # k is left open, and 2
        (["expert=4,64"], "model.d_expert < 141", ["expert=64"]),  # follows from the number of experts
        (["optim=adamw,muon"], 'optim == "muon" and model == "gpt"', ["optim=muon"]),
        (["capacity=null,1.0"], "capacity == null", ["capacity=null"]),
        (["router=topk,switch", "k=1"], "router.jitter == null", ["router=topk"]),
    ],
)
def test_what_a_condition_can_ask(words: list[str], where: str, expected: list[str]) -> None:
    """Settings as they were given, choices by name, and what is left open as it is derived."""
    assert labels(plan_sweep(words, where=[where])) == expected


def test_a_condition_does_not_hide_what_it_is_not_about() -> None:
    """A point that cannot be, and that the condition allows, is listed with its reason."""
    plan = plan_sweep(["expert=2,4", "k=2,4"], where=["expert <= 4"])
    assert [point.label for point in plan.left_out] == ["expert=2 k=4"]


def test_the_dense_baseline_is_always_there(tmp_path: Path) -> None:
    """First, once for all that differs in settings of experts only, and not where it is among the points anyway."""
    text = (
        "grid: {router: [topk, hash], k: [1, 2], model.num_layers: [2, 3]}\nset: {capacity: 1.0, balance.weight: 0.1}"
    )
    plan = mine(tmp_path, text)
    assert labels(plan)[:3] == [
        "model.num_layers=2 expert=1",
        "model.num_layers=3 expert=1",
        "router=topk k=1 model.num_layers=2",
    ]
    assert (len(plan.points), plan.num_repeats, plan.baseline) == (2 + 8, 0, {"expert": 1})
    assert labels(mine(tmp_path, "grid: {expert: [4, 1]}")) == ["expert=4", "expert=1"]
    assert labels(mine(tmp_path, "grid: {expert: [4, 8]}", "expert=2")) == ["expert=1", "expert=2"]


def test_another_baseline_replaces_the_settings_it_brings(tmp_path: Path) -> None:
    """A baseline with another choice drops the settings of the replaced choice; `baseline: null` adds none."""
    points = "points: [{balance: switch, balance.weight: 0.1}, {balance: z, balance.weight: 0.2}]\n"
    plan = mine(tmp_path, points + "baseline: {balance: none}")
    assert labels(plan) == ["balance=none", "balance=switch balance.weight=0.1", "balance=z balance.weight=0.2"]
    assert plan.points[0].config == load_config(["balance=none", "train.threads=1"]).config
    assert labels(mine(tmp_path, points + "baseline: null")) == labels(plan)[1:]


def test_a_baseline_that_cannot_be_is_said(tmp_path: Path) -> None:
    """As any point that is left out, and the others run."""
    plan = mine(tmp_path, "grid: {k: [1, 2]}\nset: {expert: 4}\nbaseline: {k: 9}")
    assert [point.label for point in plan.left_out] == ["baseline k=9"]
    assert labels(plan) == ["k=1", "k=2"]


def test_a_budget_that_is_typed_replaces_the_files(tmp_path: Path) -> None:
    """A typed budget replaces the file's budget of any kind, wherever the file has it."""
    for text in ("grid: {train.flops: [1e9, 1e10]}", "grid: {k: [1, 2]}\nbudget: {minutes: 5}"):
        plan = mine(tmp_path, text, "train.steps=7")
        assert {(each.config.train.steps, each.config.train.flops) for each in plan.points} == {(7, None)}


@pytest.mark.parametrize("words", [("train.steps=null", "train.minutes=1"), ("train.minutes=1", "train.steps=null")])
def test_null_removes_the_budget_of_an_experiment(words: Sequence[str]) -> None:
    """A typed null stays next to another budget, in any order, in a sweep and in a search."""
    typed = ["experiment=gpt_d128_long", *words, "expert=1,4"]
    budgets = {each.config.train.budget for each in plan_sweep(typed).points}
    assert {("minutes", 1)} == budgets
    plan = plan_search(typed, SearchOptions(sampler="random", trials=2), composer=Composer())
    assert {"train.steps": None, "train.minutes": 1} == {
        key: plan.fixed[key] for key in ("train.steps", "train.minutes")
    }


def test_globs_on_the_line() -> None:
    """moe sweep balance=glob(...): the choices of the group that are like it."""
    assert labels(plan_sweep(["balance=glob([s*,z])"])) == ["balance=switch", "balance=z"]
    found = labels(plan_sweep(["balance=glob(*,exclude=[l*,s*])"]))
    assert found == [f"balance={name}" for name in Composer().choices("balance") if name[0] not in "ls"]


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in ("sparsity", "isoflop") else pytest.mark.slow) for name in GRIDS]
)
def test_every_preset_of_every_sweep_can_be_planned(name: str) -> None:
    """Points that can be run, none lost but those that no router allows; and other sizes than a laptop's."""
    default = plan_sweep([name])
    for preset in ("laptop", "workstation", "cluster"):
        plan = plan_sweep([name, f"preset={preset}"])
        assert len(plan.points) > 1
        assert {point.label.split()[0] for point in plan.left_out} <= {"router=noisy_topk", "router=switch"}
        sizes = [max(each.config.model.d_model for each in some.points) for some in (default, plan)]
        assert (preset == "laptop") == (sizes[0] == sizes[1]) == (plan.points == default.points)


def test_isoflop_pays_for_every_point_alike() -> None:
    """Steps times FLOPs of a step, optimizer included, are the budget to half a step, for every size and number of experts."""
    plan = plan_sweep(["isoflop"])
    seen = set()
    for point in plan.points:
        config, budget = point.config, point.config.train.flops
        assert budget is not None
        step = estimate_cost(config, 256).flops_per_step
        assert abs((training_steps(config, 256) or 0) * step - budget) <= step / 2
        seen.add((budget, config.model.d_model, config.expert))
    assert len(seen) == len(plan.points) == 3 * 4 * 3


def recorded(folder: Path) -> dict[str, Any]:
    return read_json(folder / "sweep.json") or {}


def test_the_sweep_is_written_next_to_its_runs_and_left_alone(tmp_path: Path) -> None:
    """sweep.json holds the question, baseline, commands, and time of creation; the same command changes no file."""
    plan = plan_sweep(["paper/loss_free_table2", "train.steps=2"])
    before = time.time()
    runs = plan.create_runs(tmp_path)
    written = recorded(tmp_path / plan.name)
    assert before <= written.pop("created") <= time.time()
    assert before <= written["commands"][0].pop("time") <= time.time()
    declared = {"question": plan.question, "baseline": {"balance": "switch", "balance.weight": 0.001}}
    command = {
        "words": ["paper/loss_free_table2", "train.steps=2"],
        "seeds": [0, 1, 2],
        "where": [],
        "version": __version__,
    }
    assert {"name": "paper-loss_free_table2", **declared, "commands": [{**command, **declared}]} == written
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    stamps = {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in files}
    assert runs == plan.create_runs(tmp_path) == plan.runs(tmp_path)
    assert stamps == {
        path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in tmp_path.rglob("*") if path.is_file()
    }
    created = recorded(tmp_path / plan.name)["created"]
    plan_sweep(["paper/loss_free_table2", "train.steps=3"]).create_runs(tmp_path)
    changed = recorded(tmp_path / plan.name)
    assert (created, "train.steps=3") == (changed["created"], changed["commands"][1]["words"][1])


def test_a_second_command_keeps_what_the_first_declared(tmp_path: Path) -> None:
    """A sweep typed by hand under the name of a named one leaves question, baseline and looks, and adds its command."""
    first = plan_sweep(["paper/loss_free_table2", "train.steps=2"])
    first.create_runs(tmp_path)
    folder = tmp_path / first.name
    write_json(folder / "sweep.json", {**recorded(folder), "looks": [{"runs": 4}]})
    plan_sweep(["k=1,2", "train.steps=2"], name=first.name, seeds=2, where=["k < 9"]).create_runs(tmp_path)
    after = recorded(folder)
    assert (first.question, first.baseline, [{"runs": 4}]) == (after["question"], after["baseline"], after["looks"])
    last = after["commands"][-1]
    assert (["k=1,2", "train.steps=2"], [0, 1], ["k < 9"]) == (last["words"], last["seeds"], last["where"])


def test_a_baseline_that_is_declared_later_wins(tmp_path: Path) -> None:
    """Another named sweep in the same folder replaces question and baseline; the old ones stay with their command."""
    first = plan_sweep(["paper/loss_free_table2", "train.steps=2"], name="mine")
    first.create_runs(tmp_path)
    second = plan_sweep(["paper/shazeer_table6", "train.steps=2"], name="mine")
    second.create_runs(tmp_path)
    after = recorded(tmp_path / "mine")
    assert (second.question, {"balance": "none"}) == (after["question"], after["baseline"])
    assert [first.baseline, second.baseline] == [command["baseline"] for command in after["commands"]]


def test_a_baseline_can_be_declared_on_the_command_line(tmp_path: Path) -> None:
    """It is among the points and in sweep.json, and a later command without one leaves it; also over a named sweep's."""
    plan = plan_sweep(["balance=switch,z", "train.steps=2"], baseline="balance=none")
    assert ["balance=none seed=0", "balance=switch seed=0", "balance=z seed=0"] == [
        point.label for point in plan.points
    ]
    plan.create_runs(tmp_path)
    plan_sweep(["balance=switch,z", "train.steps=2"], seeds=2).create_runs(tmp_path)
    assert {"balance": "none"} == recorded(tmp_path / "sweep")["baseline"]
    named = plan_sweep(["paper/loss_free_table2", "train.steps=2"], baseline='balance == "none"')
    assert {"balance": "none"} == named.baseline
    with pytest.raises(ConfigError, match="--baseline balance=none is for sweeps; a search draws"):
        sweep(["optim.lr=interval(0.01,0.1)"], sampler="random", baseline="balance=none", outputs=tmp_path)


def test_a_baseline_that_cannot_be_run_is_refused() -> None:
    """A typing error is no point left out."""
    for baseline in ("balance=nono", "foo=1"):
        with pytest.raises(ConfigError, match=f"--baseline {baseline}: "):
            plan_sweep(["balance=switch,z", "train.steps=2"], baseline=baseline)


def test_the_baseline_is_trained_at_more_budgets() -> None:
    """Each budget of the baseline once, whatever the number of points; typed by hand, the baseline is dense."""
    words = ["expert=8,16", "k=1,2", "train.steps=100"]
    points = [point.config for point in plan_sweep(words, baseline_budgets=[2, 1.5]).points]
    assert [100, 150, 200] == [config.train.steps for config in points if config.dense]
    assert 4 == sum(not config.dense for config in points)
    labels = [point.label for point in plan_sweep(["expert=1,8", "train.flops=1e9"], baseline_budgets=[2]).points]
    assert ["expert=1 budget x2 seed=0", "expert=1 seed=0", "expert=8 seed=0"] == labels


def test_a_sweep_file_names_more_budgets_of_the_baseline(tmp_path: Path) -> None:
    """The part of the file means the same as the option, at each size of the model and for each seed."""
    file = tmp_path / "mine.yaml"
    text = "# ?\ngrid: {expert: [8], model.d_model: [16, 32]}\nbudget: {tokens: 10000}\nbaseline_budgets: [1.5]\n"
    file.write_text(text)
    points = [point.config for point in plan_sweep([str(file)], seeds=2).points]
    dense = sorted((config.model.d_model, config.train.tokens or 0, config.seed) for config in points if config.dense)
    assert [(width, tokens, seed) for width in (16, 32) for tokens in (10000, 15000) for seed in (0, 1)] == dense
    file.write_text(text + "baseline: null\n")
    with pytest.raises(ConfigError, match="baseline_budgets are budgets of a baseline, and baseline is null"):
        plan_sweep([str(file)])


@pytest.mark.parametrize("value", [1, 0, 101, True, "a", float("nan")])
def test_budgets_of_the_baseline_are_multiples(value: Any) -> None:
    """Numbers from 0.01 to 100 other than 1; a search has none."""
    with pytest.raises(ConfigError, match="is no multiple of the budget"):
        plan_sweep(["expert=1,8"], baseline_budgets=[value])
    with pytest.raises(ConfigError, match="is no multiple of the budget"):  # in Python one may be given without a list
        plan_sweep(["expert=1,8"], baseline_budgets=value)
    with pytest.raises(ConfigError, match="a search draws its points"):
        plan_sweep_or_search(["expert=1,8"], SearchOptions(sampler="random"), baseline_budgets=[2])


def test_commands_at_the_same_time_are_all_recorded(tmp_path: Path) -> None:
    """Each writer adds its command to what the others wrote."""
    with ThreadPoolExecutor(8) as pool:
        list(
            pool.map(
                lambda index: record_command(tmp_path, [f"k={index}"], {}, seeds=[0], where=[], version="1"), range(40)
            )
        )
    assert [f"k={index}" for index in range(40)] == sorted(
        (each["words"][0] for each in recorded(tmp_path)["commands"]), key=lambda word: int(word[2:])
    )


def test_a_damaged_record_is_begun_again(tmp_path: Path) -> None:
    """A damaged list of commands is ignored, and the sweep goes on."""
    for text in ("{", '{"commands": 3}', '{"commands": [1]}'):
        (tmp_path / "sweep.json").write_text(text)
        record_command(tmp_path, ["k=1"], {}, seeds=[0], where=[], version="1")
        assert [["k=1"]] == [each["words"] for each in recorded(tmp_path)["commands"]]


WRONG = [
    (["preset=workstation", "k=1,2"], {}, "'preset=workstation' chooses the size of a named sweep. Name one first: moe config --groups"),
    (["sparsity", "preset=laptop,cluster"], {}, "'preset=laptop,cluster' names several presets: a sweep has one."),
    (["sparsity", "preset=galaxy"], {}, "FILE: ... 'galaxy' ... There are: laptop, workstation, cluster."),
    (["optim.lr=tag(big,interval(0.01,0.1))"], {}, "'optim.lr=tag(big,interval(0.01,0.1))': a tag of an interval can be: log."),
    (["k=interval(4,1)"], {}, "'k=interval(4,1)' is empty. Write interval(low,high) with low below high; with tag(log,...), low must be above 0."),
    (["k=1,2"], {"where": ["experts > 2"]}, "no setting 'experts' in 'experts > 2'. Did you mean 'expert'?"),
    (["k=1,2"], {"where": ["router == topk"]}, "no setting 'topk' in 'router == topk'. If it is text, quote it: 'topk'."),
    (["k=1,2"], {"where": ["k"]}, "'k' in 'k' is not a condition. Compare it: k == ..."),
    (["k=1,2"], {"where": ["k > 2"]}, "no combination of these settings can be run.\n'where' leaves out 2 points."),
    (["k=1,9"], {"where": ["k > 2"]}, "no combination of these settings can be run.\nk=9: k=9 ...\n'where' leaves out 1 point."),
    (["k=1,2"], {"where": ["seed < 2"]}, "'seed < 2': every configuration has all seeds. Choose them: seed=0,1"),
    (["exprt=8"], {}, "no setting 'exprt'. Did you mean 'expert'?"),
    (["exprt=1,8"], {}, "no setting 'exprt'. Did you mean 'expert'?"),
    (["sparsity", "exprt=8"], {}, "no setting 'exprt'. Did you mean 'expert'?"),
    (["expert=8", "router.jitter=0.1"], {}, "no setting 'router.jitter' with router=topk. It belongs to router=switch."),
    (["expert=8"], {"where": ["exprt > 2"]}, "no setting 'exprt' in 'exprt > 2'. Did you mean 'expert'?"),
    (["k=1,2", "seed=one"], {}, "seed=one is not a whole number."),
]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "options", "message"),
    WRONG,
    ids=[" ".join([*words, *map(str, options.values())]) for words, options, _ in WRONG],
)
def test_what_is_refused_and_how(words: list[str], options: dict[str, Any], message: str) -> None:
    """The words are refused with just this message, in at most three lines."""
    with pytest.raises(ConfigError) as error:
        plan_sweep(words, **options)
    file = packaged_conf() / "sweep" / f"{words[0]}.yaml"
    assert Elided(message.replace("FILE", str(file))) == str(error.value)
    assert len(message.splitlines()) <= 3


def test_a_run_of_a_sweep_has_one_thread() -> None:
    """Whatever the machine and -j, baselines included; train.threads is obeyed. The runs keep their names."""
    plan = plan_sweep(["sparsity"])
    assert {1} == {point.config.train.threads for point in plan.points}
    asked = plan_sweep(["sparsity", "train.threads=3"])
    assert {3} == {point.config.train.threads for point in asked.points}
    assert [point.config.run_id for point in plan.points] == [point.config.run_id for point in asked.points]
