"""Settings as documentation: every setting has a comment, `moe config KEY`, the JSON schema."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from moe_cli.config.compose import Composer, load_config
from moe_cli.config.folders import GROUPS
from moe_cli.config.reference import explain_setting, json_schema, read_choice_settings, read_settings
from moe_cli.config.settings import packaged_conf
from moe_cli.errors import ConfigError

COMPOSER = Composer()
SCHEMA = json_schema()
KINDS = {"object": dict, "array": list, "string": str, "boolean": bool, "null": type(None)}


def errors_of(schema: dict[str, Any], value: Any, path: str = "") -> list[str]:
    """The paths at which a value does not fit the schema, for the keywords that the schema uses."""
    unknown = schema.keys() - {
        "$schema", "title", "type", "additionalProperties", "required", "properties", "oneOf", "anyOf", "const", "enum", "items",
        "pattern", "minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "description", "default",
    }  # fmt: skip
    assert not unknown
    if "oneOf" in schema:
        found = [errors_of(each, value, path) for each in schema["oneOf"]]
        return [] if [] in found and found.count([]) == 1 else min(found, key=len)
    if "anyOf" in schema:
        return min((errors_of(each, value, path) for each in schema["anyOf"]), key=len)
    kinds = schema.get("type", [])
    if kinds and not any(_is_kind(value, kind) for kind in ([kinds] if isinstance(kinds, str) else kinds)):
        return [path]
    wrong = "const" in schema and value != schema["const"]
    wrong |= "enum" in schema and value not in schema["enum"]
    wrong |= "pattern" in schema and not re.search(schema["pattern"], value)
    if _is_kind(value, "number"):
        wrong |= not schema.get("minimum", value) <= value <= schema.get("maximum", value)
        wrong |= value <= schema.get("exclusiveMinimum", value - 1) or value >= schema.get(
            "exclusiveMaximum", value + 1
        )
    if isinstance(value, list) and "items" in schema:
        wrong |= any(errors_of(schema["items"], item) for item in value)
    if isinstance(value, dict):
        properties = schema["properties"]
        wrong |= bool(value.keys() - properties.keys()) or bool(set(schema.get("required", ())) - value.keys())
        inside = [
            error
            for key in value.keys() & properties.keys()
            for error in errors_of(properties[key], value[key], f"{path}.{key}")
        ]
        return inside + [path] * wrong
    return [path] if wrong else []


def _is_kind(value: Any, kind: str) -> bool:
    if kind in ("integer", "number"):
        whole = isinstance(value, int) or (isinstance(value, float) and value == int(value))
        return isinstance(value, int | float) and not isinstance(value, bool) and (kind == "number" or whole)
    return isinstance(value, KINDS[kind])


@pytest.mark.parametrize(
    "words",
    [
        [],
        ["expert=1"],
        ["balance=switch+z"],
        ["model=lstm"],
        *(
            [f"{group}={name}"]
            for group in ("model", "router")
            for name in COMPOSER.choices(group)
            if name not in ("soft", "expert_choice")
        ),
        ["model=bert", "router=soft"],
        ["model=bert", "router=expert_choice"],
        *([f"experiment={name}"] for name in COMPOSER.choices("experiment")),
    ],
    ids=" ".join,
)
def test_the_schema_accepts_every_composed_configuration(words: list[str]) -> None:
    """A resolved configuration fits the schema, as `moe config` prints it."""
    try:
        config = load_config(words).config
    except ConfigError:
        config = load_config([*words, "data.path=notes.txt"]).config
    assert [] == errors_of(SCHEMA, json.loads(json.dumps(config.to_dict())))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("expert", 0),
        ("expert", "8"),
        ("expert", 2.5),
        ("k", [1, 0]),
        ("k", "2"),
        ("capacity", 0),
        ("match", "half"),
        ("model.dropout", 1.0),
        ("model.num_layers", None),
        ("model.colour", 1),
        ("model.name", "resnet"),
        ("optim.lr", -1),
        ("optim.warmup_fraction", 1.5),
        ("train.keep_best", "yes"),
        ("launch.num_processes", 5000),
        ("log", 3),
    ],
)
def test_the_schema_refuses_wrong_types_and_ranges(key: str, value: Any) -> None:
    """A value that `moe train` refuses does not fit the schema either."""
    tree: dict[str, Any] = load_config([]).config.to_dict()
    *groups, name = key.split(".")
    owner = tree
    for group in groups:
        owner = owner[group]
    owner[name] = value
    assert errors_of(SCHEMA, tree)


def test_every_setting_in_conf_has_a_comment() -> None:
    """Each setting of config.yaml and of each choice is explained where its default is."""
    conf = packaged_conf()
    settings = {"config": read_settings(conf / "config.yaml")}
    for group in [*(name for name in GROUPS if name != "experiment"), "executor"]:
        for name in COMPOSER.choices(group):
            settings[f"{group}/{name}"] = read_choice_settings(group, name)
    missing = [f"{file}: {each.key}" for file, lines in settings.items() for each in lines if not each.comment]
    assert [] == missing


@pytest.mark.parametrize(
    ("key", "values", "value", "source"),
    [
        ("optim.lr", {}, 0.02, "conf/optim/muon.yaml"),
        ("optim.lr", {"optim.lr": 0.1}, 0.1, "the command line"),
        ("optim.lr", {"experiment": "speedrun", "data.path": "notes.txt"}, 0.03, "experiment=speedrun"),
        ("expert", {}, 8, "conf/config.yaml"),
        ("k", {}, 2, "derived from other settings"),
        ("router.score", {"expert": 1}, None, "without effect in this configuration"),
        ("balance.z.weight", {"balance": "switch+z"}, 0.001, "conf/balance/z.yaml"),
        ("train.steps", {"train": "smoke"}, 20, "conf/train/smoke.yaml"),
    ],
)
def test_a_setting_is_explained_with_its_source(key: str, values: dict[str, Any], value: Any, source: str) -> None:
    """The value of a setting in a configuration, and where it comes from."""
    explained = explain_setting(COMPOSER, key, values)
    assert (value, source) == (explained.value, explained.source)


def test_a_path_is_explained_for_each_data_set() -> None:
    """Without a data set with a path, each has a line, text first; with one, its own, though the path is missing."""
    lines = explain_setting(COMPOSER, "data.path", {}).meaning.splitlines()
    assert lines[0].startswith("text: a file, a folder, or a pattern")
    assert any(line.startswith("fashion_mnist: ") for line in lines)
    explained = explain_setting(COMPOSER, "data.path", {"data": "text"})
    assert (None, lines[0].removeprefix("text: ")) == (explained.value, explained.meaning)


def test_an_explanation_has_meaning_values_and_defaults() -> None:
    """The comment of conf/, the range, and the default of each choice of the group."""
    explained = explain_setting(COMPOSER, "optim.momentum", {})
    assert "Muon: decay of the running sum of gradients" == explained.meaning
    assert "number from 0 to below 1" == explained.values
    assert {"muon": "0.95", "sgd": "0.9"} == explained.defaults


def test_an_unknown_setting_is_refused_with_a_hint(tmp_path: Path) -> None:
    """`moe config lr` names the setting that was meant."""
    with pytest.raises(ConfigError, match=r"^no setting 'lr'\. Did you mean 'optim\.lr'\?$"):
        explain_setting(COMPOSER, "lr", {})
