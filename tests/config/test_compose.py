"""conf/ and overrides: the shipped files hold, the short way equals Hydra's, and a user's folder comes first."""

import re
from pathlib import Path

import pytest
from hydra.errors import HydraException
from hydra.types import RunMode
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import OmegaConf

from moe_cli.config import settings
from moe_cli.config.axes import Axis, repeated_keys, single_values
from moe_cli.config.build import build
from moe_cli.config.compose import (
    GROUPS,
    Composer,
    load_config,
    packaged_conf,
    shorten_error,
)
from moe_cli.config.executors import load_executor
from moe_cli.config.overrides import parse_overrides
from moe_cli.config.resolve import resolve
from moe_cli.config.routers import SwitchConfig
from moe_cli.config.schema import RunConfig
from moe_cli.config.sweep_file import CLAIM, SPACE, SWEEP, Block, load_sweep_file
from moe_cli.errors import ConfigError

CONF = packaged_conf()
FILES = sorted(file.relative_to(CONF) for file in CONF.rglob("[!_]*.yaml"))
# What a choice cannot do without.
NEEDED = {
    ("data", "tokens"): {"data.path": "tokens", "data.vocab_size": 50_257},
    **{("data", name): {"data.path": "a"} for name in ("text", "hf", "fashion_mnist", "image_folder", "movielens")},
    **{
        ("experiment", name): {"data.path": "a.txt"}
        for name in ("shakespeare_char", "nanogpt_cpu", "nanogpt_gpu", "makemoe", "speedrun", "speedrun_long")
    },
    ("balance", "load"): {"router": "noisy_topk"},
    # No causal model may have them.
    **{("router", name): {"model": "bert"} for name in ("expert_choice", "soft")},
}


@pytest.fixture(scope="module")
def composer() -> Composer:
    return Composer()


def test_an_lstm_brings_the_balance_of_its_router_only(composer: Composer) -> None:
    """With another router it has what others have; what is named stays."""
    brought = composer.point({"model": "lstm"}).config
    other = composer.point({"model": "lstm", "router": "topk"}).config
    assert ("noisy_topk", "importance+load") == (brought.router.name, brought.balance.name)
    assert ("topk", "switch") == (other.router.name, other.balance.name)


@pytest.mark.parametrize("file", FILES, ids=str)
def test_every_file_of_conf_composes_and_validates(file: Path, composer: Composer) -> None:
    """Each yaml is a choice of a known group and gives a valid run; each value of a sweep occurs in a valid run."""
    group, choice = (
        (file.parts[0] if len(file.parts) > 1 else ""),
        "/".join(file.with_suffix("").parts[1:]) or file.stem,
    )
    if group == "":
        assert ("config", RunConfig) == (choice, type(composer.point({}).config))
    elif kind := {kind.folder: kind for kind in (SWEEP, SPACE, CLAIM)}.get(group):
        for block in load_sweep_file(composer, choice, kind=kind).blocks:
            assert_every_value_occurs(composer, block)
    elif group == "executor":
        assert choice == load_executor([], choice).name
    else:
        assert group in GROUPS
        config = composer.point({group: choice, **NEEDED.get((group, choice), {})}).config
        assert group not in ("model", "router", "balance", "data", "optim") or choice == getattr(config, group).name
    assert group == "" or composer.describe(group, choice)


def assert_every_value_occurs(composer: Composer, block: Block) -> None:
    missing = {item for dimension in block.dimensions for option in dimension.options for item in option.items()}
    for values in block.settings():
        try:
            composer.point(values)
        except ConfigError:
            continue
        missing -= set(values.items())
    assert set() == missing


def in_full(composer: Composer, words: list[str]) -> RunConfig:
    """Hydra's own composition, with every override passed to its loader."""
    tree = composer.loader.load_configuration("config", words, RunMode.RUN, from_shell=False)
    OmegaConf.set_struct(tree, False)
    tree.pop("hydra")  # holds references that only Hydra's own start can resolve
    return build(RunConfig, OmegaConf.to_container(tree, resolve=True))


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["router=switch", "router.jitter=0.25", "balance=loss_free", "balance.bias_update_rate=1e-2"],
        ["optim=adamw", "optim.lr=0.5", "optim.decay_fraction=null", "optim.grad_clip=null", "train=smoke"],
        ["model.d_ff=1024", "model.tie_embeddings=true", "model.ffn_type=glu", "capacity=1.25", "drop=probability"],
        ["data=text", "data.path='my text, with = signs.txt'", "seed=7"],
        ["experiment=gpt_d128_long", "train=smoke", "train.batch_size=3"],
        ["train.batch_size=3", "experiment=gpt_d128_long", "eval.k=1", "eval.capacity=2"],
    ],
    ids=" ".join,
)
def test_the_short_way_equals_hydras(words: list[str], composer: Composer) -> None:
    """Groups composed and values laid on top give what Hydra gives for the same words."""
    values = single_values(parse_overrides(words), "train")
    assert resolve(in_full(composer, words)).config == composer.point(values).config


def test_a_point_leaves_no_trace(composer: Composer) -> None:
    """Values of one point do not show in the next, though groups are composed once."""
    before = composer.point({}).config
    assert before != composer.point({"expert": 4, "model.d_ff": 1024}).config
    assert before == composer.point({}).config


def test_the_order_of_words_does_not_matter(composer: Composer) -> None:
    """A value may stand before the group it belongs to."""
    words = {"router.jitter": 0.5, "router": "switch"}
    assert SwitchConfig(jitter=0.5) == composer.point(words).config.router


def test_no_experiment_is_a_choice(composer: Composer) -> None:
    """experiment=null is what conf/config.yaml says, and may be typed."""
    assert composer.point({}).config == composer.point({"experiment": None}).config


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["k=2"], [Axis("k", (2,))]),
        (["k=1,2"], [Axis("k", (1, 2))]),
        (["k=range(1,4)"], [Axis("k", (1, 2, 3))]),
        (["router=choice(topk,switch)"], [Axis("router", ("topk", "switch"))]),
        (["capacity=null,1.25"], [Axis("capacity", (None, 1.25))]),
        (["model.tie_embeddings=true,false"], [Axis("model.tie_embeddings", (True, False))]),
        (["optim.lr=1e-3"], [Axis("optim.lr", (0.001,))]),
        (["data.path='a b, c=d.txt'"], [Axis("data.path", ("a b, c=d.txt",))]),
        (["data.path='a b',\"c=d\",e"], [Axis("data.path", ("a b", "c=d", "e"))]),
        (["data.path="], [Axis("data.path", ("",))]),
        (["k=1", "expert=4,8", "k=2"], [Axis("k", (2,)), Axis("expert", (4, 8))]),
        ([], []),
    ],
)
def test_words_become_axes(words: list[str], expected: list[Axis]) -> None:
    """Hydra's grammar; the last word on a key holds."""
    assert expected == parse_overrides(words)


def test_a_repeated_key_is_noted() -> None:
    """The last word for a key holds, and a note says so."""
    resolved = load_config(["expert=4", "seed=1", "expert=16"])
    assert 16 == resolved.config.expert
    assert ("expert is given more than once: the last one holds.",) == resolved.notes
    assert ["a", "b"] == repeated_keys(["b=1", "a=1", "c=1", "a=2", "b=2"])


def test_what_was_typed_in_vain_is_noted() -> None:
    """The keys that a user typed reach the notes."""
    assert ("expert=1 is dense: router ignored.",) == load_config(["expert=1", "router=switch"]).notes


def write(folder: Path, **files: str) -> Path:
    """Files named group__choice, with their text."""
    for name, text in files.items():
        path = folder.joinpath(*name.split("__")).with_suffix(".yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder


TINY = re.sub(r"d_model: \d+", "d_model: 24", (CONF / "model" / "gpt.yaml").read_text(encoding="utf-8"))


def test_a_users_folder_is_looked_up_first(tmp_path: Path) -> None:
    """A file of the same name replaces ours, a new one is a new choice, and the rest of conf/ still serves."""
    folder = write(tmp_path, model__gpt=TINY, router__mine="# my own router\nname: switch\n# much\njitter: 0.5\n")
    resolved = load_config(["router=mine", "train=smoke"], config_dir=folder).config
    assert 24 == resolved.model.d_model
    assert SwitchConfig(jitter=0.5) == resolved.router
    assert load_config(["train=smoke"]).config.train == resolved.train
    composer = Composer(folder)
    assert {"mine", "random", "switch", "topk"} < set(composer.choices("router"))
    assert "my own router" == composer.describe("router", "mine")
    assert "" == composer.describe("router", "nobody")


def test_conf_in_the_working_folder_is_the_users(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """./conf is taken when it holds groups, and left alone when it is another program's: with its own config.yaml."""
    write(tmp_path / "conf", model__gpt=TINY)
    monkeypatch.chdir(tmp_path)
    assert 24 == load_config([]).config.model.d_model
    write(tmp_path / "conf", config="a: 1\n")
    assert 24 != load_config([]).config.model.d_model


def test_a_conf_folder_of_something_else_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without any group of ours ./conf is not looked at."""
    write(tmp_path / "conf", nginx__site="a: 1\n")
    monkeypatch.chdir(tmp_path)
    assert [CONF] == Composer().folders


EXPERIMENT = """# @package _global_
# mine
defaults:
  - override /router: switch
expert: 32
router:
  jitter: 0.2
"""


def test_a_users_experiment_sets_several_groups(tmp_path: Path) -> None:
    """An experiment overrides choices and values; words on the command line override the experiment."""
    folder = write(tmp_path, experiment__mine=EXPERIMENT)
    config = load_config(["experiment=mine"], config_dir=folder).config
    assert (32, SwitchConfig(jitter=0.2)) == (config.expert, config.router)
    assert 4 == load_config(["experiment=mine", "expert=4"], config_dir=folder).config.expert
    assert "mine" == Composer(folder).describe("experiment", "mine")


@pytest.mark.parametrize(
    ("files", "words", "message"),
    [
        (
            {"model__gpt": TINY + "_target_: os.system\n"},
            [],
            "no setting 'model._target_' with model=gpt.",
        ),
        (
            {"router__mine": "name: topk\n_target_: os.system\n"},
            ["router=mine"],
            "no setting 'router._target_' with router=topk.",
        ),
        (
            {"experiment__mine": "# @package _global_\n_target_: os.system\n"},
            ["experiment=mine"],
            "no setting '_target_'.",
        ),
        (
            {"experiment__mine": "expert: 32\n"},
            ["experiment=mine"],
            "an experiment's file must begin with the line '# @package _global_': without it, it sets nothing.",
        ),
        (
            {"router__mine": "name: topk\nrenormalize: true\n"},
            ["router=mine"],
            "no setting 'router.renormalize' with router=topk. Did you mean 'renormalise'?",
        ),
        (
            {"router__mine": "name: best\n"},
            ["router=mine"],
            "router=best is not ",
        ),
        (
            {"router__mine": "renormalise: true\n"},
            ["router=mine"],
            "router=null is not ",
        ),
        (
            {"model__mine": "name: gpt\nnum_layers: ${nothing}\n"},
            ["model=mine"],
            "Interpolation key 'nothing' not found",
        ),
        ({"model__mine": "name: gpt\nnum_layers: ???\n"}, ["model=mine"], "Missing mandatory value: num_layers"),
    ],
)
def test_a_users_file_is_held_to_the_schema(
    files: dict[str, str], words: list[str], message: str, tmp_path: Path
) -> None:
    """A user's file can set only settings that exist and can name no code to run."""
    with pytest.raises(ConfigError) as error:
        load_config(words, config_dir=write(tmp_path, **files))
    assert str(error.value).startswith(message)


@pytest.mark.parametrize("text", ["name: [topk\n", "\tname: topk\n", "- topk\n", "name: topk\nname: switch\n", "\x00"])
def test_a_file_that_is_no_yaml_is_said_in_three_lines(text: str, tmp_path: Path) -> None:
    """An unreadable file raises a ConfigError of at most three lines."""
    with pytest.raises(ConfigError) as error:
        load_config(["router=mine"], config_dir=write(tmp_path, router__mine=text))
    assert 1 <= len(str(error.value).splitlines()) <= 3


@given(st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1))
def test_a_users_words_survive_in_what_hydra_says(words: str) -> None:
    """Whatever is in them, such as a + or full_key; only the hints go that Hydra and OmegaConf add at the end."""
    said = f"Could not override '{words}'."
    for added in (
        f"\nTo append to your config use +{words}=1",
        f"\nTo append to your default list use +{words}=1",
        f"\n    full_key: {words}\n    object_type=dict",
        f"\n    full_key: {words}\n    reference_type=Any\n    object_type=dict",
        "",
    ):
        assert said == shorten_error(HydraException(said + added))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [balance=a+b\n", "c++/model/mine.yaml"),
        ("name: gpt\nd_model: ${full_key+x}\n", "'full_key+x'"),
        ("defaults: [/balance: a+b]\nname: gpt\n", "balance/a+b"),
    ],
)
def test_a_plus_in_a_users_words_is_kept(text: str, message: str, tmp_path: Path) -> None:
    """A folder such as c++ and a value such as a+b stand in the error that is about them."""
    with pytest.raises(ConfigError) as error:
        load_config(["model=mine"], config_dir=write(tmp_path / "c++", model__mine=text))
    assert message in str(error.value)


def test_a_file_in_another_encoding_is_a_config_error(tmp_path: Path) -> None:
    """Bytes that are no UTF-8 are refused like any unreadable file, and do not stop the listing of choices."""
    write(tmp_path, router__mine="", sweep__mine="")
    for group in ("router", "sweep"):
        (tmp_path / group / "mine.yaml").write_bytes(b"# caf\xe9\nname: topk\n")
    with pytest.raises(ConfigError):
        load_config(["router=mine"], config_dir=tmp_path)
    with pytest.raises(ConfigError):
        load_sweep_file(Composer(tmp_path), "mine")
    assert Composer(tmp_path).describe("router", "mine").startswith("caf")


def test_a_missing_folder_is_said(tmp_path: Path) -> None:
    """--config-dir must name a folder."""
    with pytest.raises(ConfigError) as error:
        Composer(tmp_path / "nowhere")
    assert f"--config-dir {tmp_path / 'nowhere'} is not a folder." == str(error.value)


def test_a_damaged_installation_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A missing conf/ is an error that asks to install again; a checkout has conf/ next to the package."""
    monkeypatch.setattr(settings, "__file__", str(tmp_path / "moe_cli" / "config" / "settings.py"))
    with pytest.raises(ConfigError) as error:
        packaged_conf()
    package = (tmp_path / "moe_cli").resolve()
    assert f"the program's own conf/ folder is missing next to {package}. Install it again." == str(error.value)
    write(tmp_path / "conf", config="")
    assert package.parent / "conf" == packaged_conf()
    write(tmp_path / "moe_cli" / "conf", config="")
    assert package / "conf" == packaged_conf()


def test_a_users_file_may_refer_to_other_settings(tmp_path: Path) -> None:
    """`${...}` is what the other setting is in the end, and one point's values are not left to the next."""
    composer = Composer(write(tmp_path, model__mine="name: gpt\nd_model: 64\nd_ff: ${.d_model}\n"))
    widths = [composer.point({"model": "mine", **values}).config.model.d_ff for values in ({"model.d_model": 32}, {})]
    assert [32, 64] == widths
