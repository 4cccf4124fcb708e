"""Every setting has an effect, or it is refused, or it is noted and no part of the run's identity.

Each setting of each model, router and kind of data is changed to another legal value. Either the digest stays the same,
and a note names the setting, or training and evaluation give other results. Settings are read off the composed
configuration: a new one without a value in OTHER_VALUES fails.
"""

import json
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from PIL import Image

from moe_cli.cli.evaluate import eval_overrides
from moe_cli.config.balances import LossFreeBalance, QuantileBalance, SwitchBalance, WeightedBalance
from moe_cli.config.build import build
from moe_cli.config.compose import Composer, load_config
from moe_cli.config.resolve import Resolved, resolve
from moe_cli.config.schema import RunConfig
from moe_cli.config.training import BUDGETS, is_execution
from moe_cli.costs.model import training_steps
from moe_cli.errors import ConfigError, MoeError
from moe_cli.execution.data import load_run_data, model_vocab_size
from moe_cli.models.registry import make_model
from moe_cli.moe.routing import RoutingPolicy
from moe_cli.runs.folder import Run
from moe_cli.runs.recorder import NullRecorder
from moe_cli.tasks.registry import make_task
from moe_cli.training.distributed_model import DistributedModel
from moe_cli.training.evaluate import eval_policy, evaluate
from moe_cli.training.optimizers import make_optimizers
from moe_cli.training.trainer import Trainer
from tests.tiny import words

pytestmark = pytest.mark.usefixtures("unchecked_shapes")
TINY = {"expert": 4, "train.steps": 4, "train.batch_size": 2, "train.threads": 1, "train.device": "cpu"}
WIDTHS = {"model.num_layers": 2, "model.d_model": 16, "model.d_ff": 64, "model.context_length": 16}
GPT = {**TINY, **WIDTHS, "model.num_heads": 2, "optim.lr": 0.05, "data": "text", "data.path": "TEXT"}
BERT = {**GPT, "model": "bert", "optim": "adamw", "task.pseudo_perplexity_tokens": 0}
OTHER_DATA = {name: value for name, value in GPT.items() if not name.startswith("data")}
VIT = {**OTHER_DATA, "model": "vit", "model.context_length": 16, "optim": "adamw", "data": "digits"}
MMOE = {**TINY, "model": "mmoe", "model.d_model": 16, "model.d_ff": 64, "model.d_tower": 8, "model.mf_dim": 4}
PROBE = {name: value for name, value in OTHER_DATA.items() if name != "model.context_length"}
SMALL_RATINGS = {"data.users": 30, "data.items": 20, "data.clusters": 2, "data.num_pairs": 400}
# Model, router, data and optimizer, and the settings that others need to have an effect.
BASES: dict[str, dict[str, Any]] = {
    "gpt": GPT,
    "gpt dense": {**GPT, "expert": 1},
    "gpt capacity": {**GPT, "capacity": 0.5, "eval.capacity": 0.5},
    "gpt capacity for all": {**GPT, "capacity": 4, "eval.capacity": 3.5},
    "gpt one expert a token": {**GPT, "k": 1, "capacity": 0.5, "eval.capacity": 0.5},
    "gpt all experts": {**GPT, "k": 4},
    "gpt own widths": {**GPT, "match": "none", "model.d_expert": 12},
    "gpt own widths, dense layers": {**GPT, "match": "none", "model.d_expert": 12, "model.first_k_dense": 1},
    "gpt latent": {**GPT, "model.kv_lora_rank": 8, "model.shared_experts": 1},
    "gpt latent yarn": {**GPT, "model.kv_lora_rank": 8, "model.rope_scaling": "yarn", "model.rope_factor": 2.0},
    "gpt all options": {**GPT, "model.qk_norm_weights": "full", "model.qkv_bias": True, "model.rope_scaling": "yarn",
                        "model.rope_factor": 2.0, "model.num_kv_heads": 1, "model.rope_base": 10.0, "model.d_head": 32},
    "gpt learned positions": {**GPT, "model.position_encoding": "learned"},
    "gpt window": {**GPT, "model.sliding_window": 4, "model.ngrams": 2, "train.grad_accumulation": 2, "balance.scope": "global"},
    "gpt adamw": {**GPT, "optim": "adamw", "optim.schedule": "cosine"},
    "gpt sgd": {**GPT, "optim": "sgd", "optim.schedule": "constant"},
    "gpt no decay": {**GPT, "optim.decay_fraction": 0.0},
    "gpt many experts": {**GPT, "optim.expert_period": 1, "expert": 32, "k": 1, "model.context_length": 8, "train.batch_size": 4},
    "gpt bpe": {**GPT, "data.tokenizer": "bpe", "data.bpe_vocab": 280},
    "gpt jsonl": {**GPT, "data.path": "JSONL"},
    "gpt tokens": {**OTHER_DATA, "data": "tokens", "data.path": "TOKENS", "data.vocab_size": 60,
                   "data.val_fraction": 0.2},
    "gpt hub": {**GPT, "data": "hf", "data.path": "JSONL"},
    "bert": BERT,
    "lstm": {**TINY, **WIDTHS, "model": "lstm", "data": "text", "data.path": "TEXT"},
    "t5": {**TINY, **WIDTHS, "model": "t5", "model.num_layers": 4, "model.context_length": 32, "model.relative_attention_num_buckets": 8,
           "data": "text", "data.path": "TEXT"},
    "vit": VIT,
    "vit folder": {**VIT, "data": "image_folder", "data.path": "IMAGES", "data.image_size": 8},
    "mmoe": {**MMOE, "data": "ratings", **SMALL_RATINGS},
    "mmoe movielens": {**MMOE, "data": "movielens", "data.path": "MOVIELENS"},
    "phonebook": {**PROBE, "data": "phonebook", "data.entries": 30},
    "shortest_path": {**PROBE, "data": "shortest_path", "data.nodes": 6, "data.edges": 6, "data.hops": 2,
                      "data.train_graphs": 40, "data.val_graphs": 10},
    "modular": {**PROBE, "data": "modular", "data.modulus": 7},
    **{name: {**GPT, "router": name} for name in ("sigmoid", "noisy_topk", "sinkhorn", "relu", "hash", "random")},
    **{f"{name} capacity": {**GPT, "router": name, "capacity": 0.5, "eval.capacity": 0.5}
       for name in ("noisy_topk", "sinkhorn", "relu", "hash", "random", "switch")},
    "sinkhorn sharp": {**GPT, "router": "sinkhorn", "router.temperature": 0.02, "model.init_std": 1.0},
    "switch": {**GPT, "router": "switch"},
    "sigmoid groups": {**GPT, "router": "sigmoid", "expert": 8, "router.groups": 4},
    "sigmoid all groups": {**GPT, "router": "sigmoid", "expert": 8, "router.groups": 2, "router.top_groups": 2},
    "expert_choice": {**BERT, "router": "expert_choice"},
    "expert_choice capacity": {**BERT, "router": "expert_choice", "capacity": 0.5, "eval.capacity": 0.5},
    "expert_choice sequence": {**BERT, "router": "expert_choice", "balance.scope": "sequence"},
    "soft": {**BERT, "router": "soft"},
    "soft own widths": {**BERT, "router": "soft", "match": "none", "model.d_expert": 12},
    **{f"balance {name}": {**GPT, "balance": name} for name in ("importance", "loss_free", "quantile", "entropy", "z")},
    "balance mutual_information": {**GPT, "balance": "mutual_information"},
    "balance of two": {**GPT, "balance": "switch+z"},
    "balance load": {**GPT, "router": "noisy_topk", "balance": "load"},
}  # fmt: skip
# Other values of settings that are no choice among names; the first that is not the base's own is taken.
OTHER_VALUES: dict[str, list[Any]] = {
    "expert": [8], "k": [1, 3], "capacity": [0.5, 0.75, 32, 1000], "seed": [1],
    "model.num_layers": [3, 6], "model.d_model": [32], "model.d_ff": [128], "model.d_expert": [7, [8, 8, 8, 24]],
    "model.expert_dropout": [0.5], "model.expert_init_scale": [0.1], "model.shared_experts": [1, 2], "model.d_shared": [6],
    "model.moe_layer_freq": [2, 1], "model.first_k_dense": [1, 0], "model.moe_layers": [[2], [1]], "model.context_length": [8], "model.vocab_size": [2000],
    "model.dropout": [0.5], "model.num_heads": [1], "model.num_kv_heads": [1], "model.d_head": [4], "model.sliding_window": [3],
    "model.attention_dropout": [0.5], "model.kv_lora_rank": [6], "model.q_lora_rank": [4], "model.qk_rope_head_dim": [2],
    "model.rope_base": [10.0], "model.norm_eps": [0.1], "model.rope_factor": [2.0, 3.0], "model.rope_original_context": [4, 2],
    "model.rope_mscale_all_dim": [1.0, 0.5], "model.logit_softcap": [1.0], "model.ngrams": [3], "model.ngram_rows": [7], "model.init_std": [0.5], "model.patch_size": [4],
    "model.d_tower": [16], "model.mf_dim": [3], "model.relative_attention_num_buckets": [12], "model.relative_attention_max_distance": [12],
    "router.init_scale": [30.0], "optim.router_lr": [0.3],
    "router.temperature": [4.0], "router.null_experts": [1], "router.jitter": [0.5], "router.scale": [2.0],
    "router.groups": [2, 4], "router.top_groups": [2, 1], "router.iterations": [1], "router.l1": [1.0],
    "router.l1_rate": [4.0], "router.slots": [2], "weight": [1.0], "bias_update_rate": [0.1], "balance.iterations": [1],
    "task.mask_prob": [0.5], "task.mask_token_prob": [0.4], "task.random_token_prob": [0.2], "task.pseudo_perplexity_tokens": [16],
    "task.noise_density": [0.4], "task.mean_noise_span_length": [1.5], "task.num_sentinels": [50], "task.l2": [0.5], "task.l2_embedding": [0.5],
    "data.tokenizer": ["chars"], "data.bpe_vocab": [270], "data.val_fraction": [0.3], "data.test_fraction": [0.2],
    "data.path": ["OTHER"], "data.field": ["body"], "data.exclude": ["*1.*"], "data.val_tokens": [20], "data.vocab_size": [100],
    "data.subset": ["default"], "data.split": ["train[:50%]"], "data.revision": ["main"],
    "data.max_bytes": [1500], "data.max_documents": [15], "data.image_size": [16], "data.channels": [1],
    "data.users": [40], "data.items": [30], "data.clusters": [3], "data.num_pairs": [300], "data.noise": [1.0],
    "data.task_correlation": [-0.5], "data.seed": [1], "data.fold": [1], "data.test_fold": [2], "data.click_threshold": [3.0],
    "data.entries": [20], "data.name_length": [3], "data.number_length": [2], "data.nodes": [7], "data.edges": [7],
    "data.hops": [3], "data.train_graphs": [30], "data.val_graphs": [8], "data.modulus": [11],
    "optim.lr": [0.1], "optim.adam_lr": [0.1], "optim.momentum": [0.3], "optim.expert_period": [3], "optim.weight_decay": [0.5], "optim.beta1": [0.5],
    "optim.beta2": [0.5], "optim.warmup_fraction": [0.4], "optim.decay_fraction": [0.9], "optim.min_lr_ratio": [0.5], "optim.grad_clip": [0.01],
    "optim.ema_decay": [0.5], "train.steps": [5], "train.tokens": [900], "train.flops": [1e8], "train.model_flops": [1e8], "train.batch_size": [6],
    "train.grad_accumulation": [2, 1], "eval.k": [1, 2], "eval.capacity": [0.5, 0.75, 32, 1000], "eval.context_length": [8, 4],
    "eval.stride": [4, 2],
}  # fmt: skip
# Why a setting cannot be held to the rule here.
EXEMPT = {
    "train.minutes": "a budget of time: how many steps it holds is not fixed",
    "train.on_nan": "acts on a loss that is not finite",
    "train.upcycle_from": "needs a dense run",
    "train.upcycle_noise": "needs a dense run",
    "train.upcycle_drop": "needs a dense run",
    "train.precision": "auto is decided by the device where a run first starts, and kept from then on",
    "model.dispatch": "back ends give the same results to rounding",
    "data.dtype": "null is what the header of a file says",
    "data.streaming": "how the same texts are read",
    "data.revision": "of a data set on the hub",
    "data.subset": "of a data set on the hub",
}  # fmt: skip
# Settings that act through others alone: where those come to the same, so does the digest.
THROUGH = ("match", "model.d_ff", "model.moe_layer_freq", "model.first_k_dense")
# Settings that act in some steps only, and the base in which they do.
SOMETIMES = {
    "optim.skip_idle_experts": "gpt many experts",  # a step in which an expert gets no token
    "router.iterations": "sinkhorn sharp",  # a batch for which one iteration is not enough
}
GROUP_CHOICES = ("router", "balance", "optim")


@dataclass(frozen=True)
class Change:
    base: str
    key: str
    value: Any

    def values(self) -> dict[str, Any]:
        """The settings of the base with this one changed; a budget is the only one."""
        values = dict(BASES[self.base])
        if self.key in GROUP_CHOICES:
            values = {name: value for name, value in values.items() if not name.startswith(f"{self.key}.")}
        budget = self.key.removeprefix("train.")
        others = [f"train.{name}" for name in BUDGETS if name != budget] if budget in BUDGETS else []
        return {**values, **dict.fromkeys(others), self.key: self.value}


@cache
def composer() -> Composer:
    return Composer()


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Every setting by its dotted name."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        found |= leaves(value, f"{prefix}{name}.") if isinstance(value, Mapping) else {prefix + name: value}
    return found


def names_of_choice(hint: Any) -> list[Any]:
    """The values of a type that lists them; of a bool both; else nothing."""
    options = get_args(hint) if get_origin(hint) is not Literal and get_args(hint) else (hint,)
    literals = [value for option in options if get_origin(option) is Literal for value in get_args(option)]
    return literals or ([True, False] if bool in options else [])


def value_of(config: Any, key: str) -> Any:
    """A setting by its dotted name; None where its group is none."""
    for part in key.split("."):
        config = getattr(config, part, None)
    return config


def other_values(key: str, config: RunConfig, resolved: RunConfig) -> list[Any]:
    """Legal values that the setting does not have, neither as it was given nor as it was derived."""
    group, _, name = key.rpartition(".")
    taken = [value_of(config, key), value_of(resolved, key)]
    if group == "eval":  # null is as in training, with defaults of its own
        own = {"drop": resolved.eval_drop, "context_length": resolved.eval_length, "stride": resolved.eval_stride}
        taken.append(own.get(name, value_of(resolved, name)))
    choices = names_of_choice(get_type_hints(type(value_of(config, group) if group else config))[name])
    if choices:
        return [value for value in choices if value not in taken]
    values = OTHER_VALUES.get(key) or OTHER_VALUES[name]
    number = 3 if name == "capacity" else 1  # with two that hold every token
    return [value for value in values if value not in taken][:number]


@cache
def changes_of(base: str) -> list[Change]:
    """Every setting of a base with the other values it is given, those of execution apart."""
    tree = composer().tree(BASES[base])
    config: RunConfig = build(RunConfig, tree)
    resolved = resolve(config).config
    found = [
        Change(base, key, value)
        for key in leaves(tree)
        if not key.endswith(".name") and not is_execution(key) and key not in EXEMPT
        for value in other_values(key, config, resolved)
    ]
    for group in GROUP_CHOICES:
        chosen = (tree[group]["name"], value_of(resolved, f"{group}.name"))
        found += [Change(base, group, choice) for choice in composer().choices(group) if choice not in chosen]
    return found


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Small data of each kind, by the name that BASES and OTHER_VALUES have for them."""
    folder = tmp_path_factory.mktemp("data")
    draw = np.random.default_rng(0)
    for name, seed in (("TEXT", 0), ("OTHER", 100)):
        (folder / name).mkdir()
        for number in range(30):
            (folder / name / f"{number:02d}.txt").write_text(words(40 + 3 * number, seed + number))
    rows = [{"text": words(60, number), "body": words(60, 50 + number)} for number in range(30)]
    (folder / "JSONL.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "TOKENS.bin").write_bytes(struct.pack("<1000H", *draw.integers(50, size=1000)))
    for label in ("a", "b"):
        (folder / "IMAGES" / label).mkdir(parents=True)
        for number in range(10):
            pixels = draw.integers(256, size=(12, 12, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "IMAGES" / label / f"{number}.png")
    (folder / "MOVIELENS").mkdir()
    pairs = draw.permutation(200)[:150]
    lines = [f"{pair // 10 + 1}\t{pair % 10 + 1}\t{draw.integers(1, 6)}\t1\n" for pair in pairs]
    (folder / "MOVIELENS" / "u.data").write_text("".join(lines))
    return {
        name: str(next(folder.glob(f"{name}*"))) for name in ("TEXT", "OTHER", "JSONL", "TOKENS", "IMAGES", "MOVIELENS")
    }


class Results:
    """Trains configurations once each: every weight after training, and the results of evaluations."""

    def __init__(self, files: dict[str, str], folder: Path) -> None:
        self.files = files
        self.folder = folder
        self.known: dict[str, object] = {}

    def resolve(self, values: dict[str, Any], given: set[str]) -> Resolved:
        """The configuration, with the paths of the files; only `given` counts as typed."""
        values = {key: self.files.get(value, value) if key == "data.path" else value for key, value in values.items()}
        return resolve(build(RunConfig, composer().tree(values)), user_keys=given)

    def of(self, config: RunConfig) -> Any:
        if config.digest not in self.known:
            self.known[config.digest] = self._train(config)
        return self.known[config.digest]

    def _train(self, config: RunConfig) -> object:
        corpus = load_run_data(config, self.folder)
        task, size = make_task(config, corpus), model_vocab_size(config, corpus)
        model = make_model(config, size)
        training = Trainer(
            config,
            DistributedModel(config.launch, model),
            task,
            make_optimizers(config.optim, model),
            NullRecorder(Run(self.folder)),
            training_steps(config, size),
            lambda view: None,
        )
        torch.manual_seed(config.seed)
        while training.progress < 1:
            training.step()
        with training.averaged():
            return self._looks(config, training)

    def _looks(self, config: RunConfig, training: Trainer) -> object:
        policy = eval_policy(config.eval)
        look = partial(evaluate, training.model, batch_size=8, precision=config.train.precision)
        looks = [look(training.task, max_tokens=64, policy=policy)]
        if config.capacity is not None:
            trained = RoutingPolicy(config.eval.k, config.capacity)
            looks.append(look(training.task, max_tokens=64, policy=trained))
        if pseudo_perplexity_task := training.task.pseudo_perplexity_task():
            looks.append(look(pseudo_perplexity_task, policy=policy))
        weights = {name: tensor.numpy().tobytes() for name, tensor in training.model.state_dict().items()}
        losses = [(look.loss, look.num_tokens, sorted(look.measures.items())) for look in looks]
        return weights, losses, training.task.meta["sha256"], int(training.task.meta["vocab_size"])


@pytest.fixture(scope="module")
def results(files: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Results:
    return Results(files, tmp_path_factory.mktemp("outputs"))


def fault(change: Change, results: Results) -> str | None:
    """Returns the fault in a change's effect; None if it has an effect, is refused, or is noted and not identity."""
    base = results.resolve(BASES[change.base], set()).config
    try:
        changed = results.resolve(change.values(), {change.key})
    except ConfigError:
        return None
    noted = any(change.key in note for note in changed.notes)
    if changed.config.digest == base.digest:
        return None if noted or change.key in THROUGH else "changes nothing, and no note says so"
    expected = results.of(base)
    try:
        found = results.of(changed.config)
    except MoeError:
        return None
    if expected == found:
        return None if SOMETIMES.get(change.key, change.base) != change.base else "changes the digest and nothing else"
    ignored = noted and "ignored" in str(changed.notes) and not change.key.startswith("balance")
    return f"has an effect, and is said to have none: {changed.notes}" if ignored else None


def faults(changes: list[Change], results: Results) -> dict[str, str]:
    """Returns the faults of the changes of one base."""
    if changes[0].base == "gpt hub":
        pytest.importorskip("datasets")
    found = {f"{change.key}={change.value}": fault(change, results) for change in changes}
    return {words: wrong for words, wrong in found.items() if wrong}


TRIED_IN = 3


@cache
def changed_keys() -> dict[str, list[str]]:
    """The bases that have each setting and each choice of a group."""
    found: dict[str, list[str]] = {}
    for base in BASES:
        for key in dict.fromkeys(change.key for change in changes_of(base)):
            found.setdefault(key, []).append(base)
    return found


def tried_in(key: str) -> list[str]:
    """The bases in which other values of a setting are tried: at most TRIED_IN, spread over those that have it."""
    bases = changed_keys()[key]
    first = zlib.crc32(key.encode())
    spread = {bases[(first + number * len(bases) // TRIED_IN) % len(bases)] for number in range(TRIED_IN)}
    return sorted(spread | ({SOMETIMES[key]} if key in SOMETIMES else set()))


@pytest.mark.parametrize("base", ["gpt", "gpt dense", "bert", "mmoe", "relu"])
def test_settings_have_an_effect_or_are_noted(base: str, results: Results) -> None:
    """Another value gives other weights or another evaluation; or it is refused; or a note says that it does nothing."""
    assert {} == faults(changes_of(base)[::96], results)


@pytest.mark.slow
@pytest.mark.parametrize("base", BASES)
def test_every_setting_has_an_effect_or_is_noted(base: str, results: Results) -> None:
    """The same for every setting of all bases, each in three of the bases that have it."""
    changes = [change for change in changes_of(base) if base in tried_in(change.key)]
    assert {} == (faults(changes, results) if changes else {})


# Settings of a base that are ignored, and where they are in the configuration.
DO_NOTHING: list[tuple[dict[str, Any], str, Any]] = [
    (BASES["gpt all experts"], "balance", SwitchBalance(weight=1.0)),
    (BASES["gpt all experts"], "balance", LossFreeBalance(bias_update_rate=0.1)),
    (BASES["gpt all experts"], "balance", QuantileBalance()),
    ({**BASES["gpt all experts"], "router": "noisy_topk"}, "balance", WeightedBalance(name="load", weight=1.0)),
    (BASES["gpt one expert a token"], "renormalise_after_drop", True),
    (GPT, "capacity", 2.0),
    (BASES["expert_choice"], "balance", SwitchBalance(weight=1.0)),
    (BASES["expert_choice"], "capacity", 1.0),
    ({**BASES["expert_choice"], "capacity": 2}, "capacity", 9.0),
    (BASES["soft"], "balance", SwitchBalance(weight=1.0)),
]


@pytest.mark.parametrize(("values", "name", "value"), DO_NOTHING)
def test_what_is_set_aside_does_nothing(values: dict[str, Any], name: str, value: Any, results: Results) -> None:
    """Training with the setting, had it been left in, ends with the same weights to rounding.

    By SGD: AdamW and Muon make whole steps of gradients that are zero but for rounding.
    """
    config = results.resolve({**values, "optim": "sgd"}, set()).config
    kept = replace(config, **{name: value})
    assert config.digest == resolve(kept).config.digest != kept.digest
    (weights, *_), (others, *_) = results.of(config), results.of(kept)
    for key, expected in weights.items():
        found = np.frombuffer(others[key], np.float32)
        np.testing.assert_allclose(found, np.frombuffer(expected, np.float32), rtol=0, atol=1e-5, err_msg=key)


# A default without effect, and the settings that would be silent about it.
IDLE = [
    (["model=bert", "router=expert_choice"], "balance", "none"),
    (["model=bert", "router=soft"], "balance", "none"),
    (["model=bert", "router=expert_choice", "balance=switch+z"], "balance", "z"),
]


@pytest.mark.parametrize(("words", "group", "expected"), IDLE)
def test_a_default_without_effect_is_set_aside_silently(words: list[str], group: str, expected: str) -> None:
    """A default that has no effect under the router is no part of the run; only a typed one is noted."""
    resolved = load_config(words)
    assert expected == value_of(resolved.config, f"{group}.name")
    assert any(word.startswith("balance=") for word in words) == any("balance" in note for note in resolved.notes)


@pytest.mark.parametrize(
    ("words", "same"),
    [
        (["router=sigmoid", "router.groups=2", "router.top_groups=2"], ["router=sigmoid"]),
        (["eval.k=2"], []),
        (["capacity=4", "drop=random"], []),
        (["eval.capacity=9", "eval.drop=random"], []),
        (["capacity=4", "eval.k=1", "eval.capacity=4"], ["eval.k=1", "eval.capacity=4"]),
        (["model=bert", "router=expert_choice", "capacity=9"], ["model=bert", "router=expert_choice", "capacity=4"]),
        (["model=bert", "router=expert_choice", "capacity=1"], ["model=bert", "router=expert_choice"]),
        (["capacity=1.0", "eval.capacity=1.0", "eval.drop=causal"], ["capacity=1.0", "eval.capacity=1.0"]),
        (["optim.decay_fraction=0"], ["optim.schedule=constant"]),
        (["router=random", "capacity=1.0", "drop=probability"], ["router=random", "capacity=1.0"]),
        (["model.moe_layer_freq=2", "model.first_k_dense=1"], ["model.moe_layer_freq=2"]),
        (["model=bert", "router=soft", "k=1"], ["model=bert", "router=soft", "k=4"]),
        (["expert=4", "k=4", "eval.k=4"], ["expert=4", "k=4"]),
        (["k=1", "capacity=1.0", "eval.k=1", "renormalise_after_drop=true"], ["k=1", "capacity=1.0"]),
        (["optim.min_lr_ratio=1"], ["optim.schedule=constant"]),
        (["optim.schedule=cosine", "optim.min_lr_ratio=1"], ["optim.schedule=linear", "optim.min_lr_ratio=1"]),
        (["optim.ema_decay=0"], []),
    ],
)
def test_two_ways_to_say_one_thing_are_one_run(words: list[str], same: list[str]) -> None:
    """Equal training has an equal digest."""
    assert load_config(same).config.digest == load_config(words).config.digest


def test_the_exceptions_are_settings_that_there_are() -> None:
    """Every setting of EXEMPT, THROUGH, and SOMETIMES occurs in a base."""
    keys = {key for base in BASES for key in leaves(composer().tree(BASES[base]))}
    assert set() == {*EXEMPT, *THROUGH, *SOMETIMES} - keys


@pytest.mark.parametrize(
    ("router", "words"),
    [
        ("soft", "eval.k=1"),
        ("soft", "eval.capacity=1.0"),
        ("soft", "eval.drop=random"),
        ("expert_choice", "eval.drop=random"),
    ],
)
def test_an_evaluation_refuses_what_has_no_effect(router: str, words: str) -> None:
    """`moe eval RUN` says that the router of the run does not know the setting."""
    config = load_config(["model=bert", f"router={router}"]).config
    with pytest.raises(ConfigError) as error:
        eval_overrides(config, [words])
    assert f"'{words.partition('=')[0]}' has no effect with router={router}. Leave it out." == str(error.value)
