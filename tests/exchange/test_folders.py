"""Folders that are written and read: files, refusals, spellings, hostile contents. No transformers is needed."""

import json
import os
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.errors import ConfigError, MoeError
from moe_cli.exchange.export_run import export_run
from moe_cli.exchange.families import FAMILIES
from moe_cli.exchange.import_folder import import_folder
from moe_cli.exchange.settings import TheirConfig, choose_family, to_our_settings
from moe_cli.files.reading import Unreadable
from moe_cli.files.tensor_file import NewTensor, TensorFile, write_tensors
from moe_cli.runs.folder import Run
from moe_cli.training.checkpoint_writer import save_imported
from tests.exchange.random_models import our_settings, random_run
from tests.runner import CliRunner
from tests.tiny import finish, tiny_config

FAMILY_SEEDS = [("qwen3_moe", 0), ("mixtral", 1), ("deepseek_v3", 2)]


@pytest.fixture
def data(text_file: Path) -> list[str]:
    return ["data=text", f"data.path={text_file}", "train.device=cpu"]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small Qwen3-MoE. Not to be changed: copy it."""
    folder = tmp_path_factory.mktemp("exported")
    run, _ = random_run(folder / "out", our_settings("qwen3_moe", 0), 0)
    export_run(run, folder / "out", folder / "model")
    return folder / "model"


@pytest.fixture
def model(exported: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    folder = tmp_path / "model"
    folder.mkdir()
    for file in exported.iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    return folder


def moe(*words: object) -> Any:
    return CliRunner().invoke(app, [str(word) for word in words])


def change_config(model: Path, **changes: Any) -> None:
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, **changes}))


def tensors_of(run: Run) -> dict[str, torch.Tensor]:
    return load_file(run.path / "checkpoints/step_00000000/model.safetensors")


# --- export


REFUSED = {
    "model.position_encoding=learned": "model.position_encoding=learned",
    "model.norm=layer": "model.norm=layer",
    "model.ffn_type=mlp": "model.ffn_type=mlp",
    "model.sliding_window=4": "model.sliding_window=4",
    "model.logit_softcap=15": "model.logit_softcap=15.0",
    "model.ngrams=3": "model.ngrams=3",
    "router=sinkhorn": "router=sinkhorn",
    "router.score=cosine": "router.score=cosine",
    "router.null_experts=2": "router.null_experts=2",
    "router=sigmoid": "model.kv_lora_rank=null",
    "model.kv_lora_rank=8": "model.kv_lora_rank=8",
    "model.shared_experts=1": "model.shared_experts=1",
    "router=sigmoid model.kv_lora_rank=8 model.shared_experts=1 model.d_shared=24": "model.d_shared=24",
    "model.qk_norm=false model.moe_layer_freq=2": "model.qk_norm=false",
    "k=[1,2]": "k=[1,2]",
    "expert=2 match=none model.d_expert=[8,16]": "model.d_expert=[8,16]",
    "router=sigmoid model.kv_lora_rank=8 model.moe_layers=[1]": "model.moe_layers=[1]",
    "model.qkv_bias=true": "model.qkv_bias=true",
    "model=bert": "model=bert",
    "model=t5 model.moe_layer_freq=1": "model=t5",
}


@pytest.mark.parametrize("changes", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(changes: str, text_file: Path) -> None:
    """One line names the setting and its value, and says what could be exported."""
    words = ["data=text", f"data.path={text_file}", "model.num_layers=2", "model.d_model=16", *changes.split()]
    with pytest.raises(ConfigError) as refused:
        choose_family(load_config(words).config)
    assert str(refused.value).startswith(f"{REFUSED[changes]} has no counterpart")
    assert "Exportable: " in str(refused.value)
    assert "\n" not in str(refused.value)


def test_learned_biases_of_experts_are_not_lost(tmp_path: Path) -> None:
    """Biases of loss-free balancing are zero, or refused where a family lacks them."""
    settings = [*our_settings("qwen3_moe", 0), "balance=loss_free"]
    run, _ = random_run(tmp_path / "out", settings, 0)
    export_run(run, tmp_path / "out", tmp_path / "zero")
    weights = run.path / "checkpoints/step_00000000/model.safetensors"
    changed = {name: tensor + name.endswith("expert_bias") for name, tensor in load_file(weights).items()}
    shutil.rmtree(run.path / "checkpoints")
    save_imported(run, lambda path: save_file(changed, path), {})
    with pytest.raises(ConfigError, match="balance=loss_free with router=topk has learned biases"):
        export_run(run, tmp_path / "out", tmp_path / "biased")
    assert not (tmp_path / "biased" / "model.safetensors").exists()


@pytest.mark.parametrize(("family", "seed"), FAMILY_SEEDS)
def test_large_weights_are_written_in_shards(family: str, seed: int, tmp_path: Path, data: list[str]) -> None:
    """No file is larger than the limit, the index names each tensor once, and the import has the same bits."""
    run, _ = random_run(tmp_path / "out", our_settings(family, seed), seed)
    whole = export_run(run, tmp_path / "out", tmp_path / "whole")
    export_run(run, tmp_path / "out", tmp_path / "model", shard_bytes=20_000)
    index = json.loads((tmp_path / "model/model.safetensors.index.json").read_text())
    assert whole.num_bytes == index["metadata"]["total_size"]
    sizes = {name: (tmp_path / "model" / name).stat().st_size for name in set(index["weight_map"].values())}
    assert len(sizes) > 1
    parts = {name: load_file(tmp_path / "model" / name) for name in sizes}
    assert all(sum(t.nbytes for t in part.values()) <= 20_000 or len(part) == 1 for part in parts.values())
    assert index["weight_map"] == {tensor: name for name, part in parts.items() for tensor in part}
    first, _ = import_folder(tmp_path / "whole", tmp_path / "out", data)
    second, _ = import_folder(tmp_path / "model", tmp_path / "out", data)
    weights, others = tensors_of(first), tensors_of(second)
    assert all(torch.equal(tensor, others[name]) for name, tensor in weights.items())
    # A second export in fewer files leaves none of the first.
    export_run(run, tmp_path / "out", tmp_path / "model", force=True)
    assert ["model.safetensors"] == [file.name for file in (tmp_path / "model").glob("model*")]


def test_the_command_writes_a_folder(text_file: Path, tmp_path: Path) -> None:
    """It prints the class that loads the model, writes no file over another, and lists its files as JSON."""
    outputs = tmp_path / "out"
    finished = finish(tiny_config(text_file, train={"steps": 1}, model={"ffn_type": "glu"}), outputs)
    target = tmp_path / "model"
    plain = moe("export", finished.id, target, "--outputs", outputs)
    assert plain.exit_code == 0, plain.output
    assert "Qwen3MoeForCausalLM" in plain.stdout
    refused = moe("export", finished.id, target, "--outputs", outputs)
    assert (2, True) == (refused.exit_code, "is not empty" in refused.stderr)
    forced = moe("export", finished.id, target, "--outputs", outputs, "--force", "--json")
    described = json.loads(forced.stdout)
    assert sorted(described["files"]) == sorted(file.name for file in target.iterdir())
    inside = moe("export", finished.id, outputs / "model", "--outputs", outputs)
    assert (2, True) == (inside.exit_code, "folder of runs" in inside.stderr)
    other = moe("export", finished.id, tmp_path / "other", "--outputs", outputs, "--format", "gguf")
    assert (2, True) == (other.exit_code, "--format gguf" in other.stderr)
    below_file = moe("export", finished.id, target / "README.md/model", "--outputs", outputs)
    assert (2, True) == (below_file.exit_code, "Not a directory. Name another folder." in below_file.stderr)


def test_the_averaged_weights_and_the_chosen_checkpoint_are_exported(text_file: Path, tmp_path: Path) -> None:
    """As `moe eval` takes them: the running average where there is one, and the checkpoint that is named."""
    train = {"steps": 4, "checkpoint_every": 2, "keep_checkpoints": 5}
    config = tiny_config(text_file, train=train, optim={"ema_decay": 0.5}, model={"ffn_type": "glu"})
    run = finish(config, tmp_path / "out")
    for which in ("2", "latest"):
        export_run(run, tmp_path / "out", tmp_path / which, which)
        folder = run.path / f"checkpoints/step_{2 if which == '2' else 4:08d}"
        average = load_file(folder / "ema.safetensors")["embedding.weight"]
        exported = load_file(tmp_path / which / "model.safetensors")["model.embed_tokens.weight"]
        assert torch.equal(average, exported)
        assert not torch.equal(average, load_file(folder / "model.safetensors")["embedding.weight"])


def test_the_model_card_has_the_interval_over_seeds(text_file: Path, tmp_path: Path) -> None:
    """Runs that differ in the seed alone give the mean and the interval; others do not count."""
    glu = {"model": {"ffn_type": "glu"}}
    runs = [finish(tiny_config(text_file, seed=seed, train={"steps": 2}, **glu), tmp_path / "out") for seed in range(3)]
    finish(tiny_config(text_file, train={"steps": 3}, **glu), tmp_path / "out")
    export_run(runs[0], tmp_path / "out", tmp_path / "model")
    card = (tmp_path / "model/README.md").read_text()
    losses = [(run.summary() or {})["val_loss"] for run in runs]
    assert f"| nats per token | {losses[0]:.4f} | {np.mean(losses):.4f} ± " in card
    assert "3 seeds" in card
    assert (runs[0].meta()["corpus"] or {})["sha256"] in card
    assert "MaxVio" in card
    assert f"data.path={text_file.name}" in card
    assert str(text_file.parent) not in card, "a card is published: it has no paths of its author"


# --- import


def test_an_imported_run_is_evaluated_and_can_be_used(model: Path, tmp_path: Path, data: list[str]) -> None:
    """Every command for trained models works on it, and its status says that it was not trained here."""
    outputs = ["--outputs", tmp_path / "out"]
    made = moe("import", model, *data, *outputs, "--json")
    assert made.exit_code == 0, made.output
    described = json.loads(made.stdout)
    name = described["run"]
    assert "imported" == described["status"] == Run(Path(described["path"])).status()["status"]
    for words in (
        ("eval", name, "--json"),
        ("explain", name, "the router"),
        ("sample", name, "--tokens", 5),
        ("runs", "experts", name),
        ("runs", "ls", "--status", "imported"),
        ("report", "imported"),
    ):
        done = moe(*words, *outputs)
        assert done.exit_code == 0, done.output
        if words[0] == "eval":
            evaluated = json.loads(done.stdout)["evaluations"][0]
            assert evaluated["val_loss"] == pytest.approx(described["results"]["val_loss"])
        if words[0] in ("runs", "report"):
            assert name in done.stdout
    resumed = moe("train", "--resume", name, *outputs)
    assert (2, True) == (resumed.exit_code, "was imported" in resumed.stderr)
    assert not any(file.suffix == ".tmp" for file in (tmp_path / "out").rglob("*"))


def test_the_sample_of_the_model_card_fits_into_the_context(tmp_path: Path) -> None:
    """Models with a short context get a shorter sample."""
    for seed, (length, written) in enumerate([(24, 20), (512, 40)]):
        settings = [*our_settings("llama", 0), f"model.context_length={length}"]
        run, _ = random_run(tmp_path / "out", settings, seed)
        export_run(run, tmp_path / "out", tmp_path / f"model {length}")
        assert f"max_new_tokens={written})" in (tmp_path / f"model {length}/README.md").read_text()


def test_a_path_through_the_outputs_folder_is_not_in_it(tmp_path: Path) -> None:
    """A path may leave the outputs folder by its dots."""
    run, _ = random_run(tmp_path / "out", our_settings("llama", 0), 0)
    assert 2 == moe("export", run.path, tmp_path / "out/model", "--outputs", tmp_path / "out").exit_code
    export = moe("export", run.path, tmp_path / "out/../model", "--outputs", tmp_path / "out")
    assert 0 == export.exit_code, export.output
    assert (tmp_path / "model/config.json").is_file()


def test_two_imported_models_of_equal_settings_are_two_rows(model: Path, tmp_path: Path, data: list[str]) -> None:
    """Their weights differ, although no setting does: the newer one does not replace the other."""
    outputs = ["--outputs", tmp_path / "out"]
    names = []
    for factor in (1, 2):
        weights = load_file(model / "model.safetensors")
        save_file({name: factor * tensor for name, tensor in weights.items()}, model / "model.safetensors")
        names.append(json.loads(moe("import", model, *data, *outputs, "--json").stdout)["run"])
    assert names[1] == f"{names[0]}-2"
    report = json.loads(moe("report", "imported", *outputs, "--format", "json").stdout)
    assert sorted(names) == sorted(row["run"] for row in report)


def test_an_unchanged_folder_is_imported_once(model: Path, tmp_path: Path, data: list[str]) -> None:
    """The output names the run and the next command; a second import says so, and evaluates where the first did not."""
    outputs = ["--outputs", tmp_path / "out"]
    first = moe("import", model, *data, "--no-eval", *outputs)
    (path,) = (tmp_path / "out/imported").glob("gpt-*")
    assert f"path  {path}" in first.stdout
    assert f"next  moe eval {path.name}" in first.stdout
    assert "before" not in first.output
    second = moe("import", model, *data, *outputs)
    assert 0 == second.exit_code
    assert "was imported before" in second.stderr
    assert f"next  moe sample {path.name}" in second.stdout
    assert Run(path).summary() is not None
    assert [path] == list((tmp_path / "out/imported").glob("gpt-*"))
    moe("import", model, *data, "model.context_length=8", *outputs)
    assert 2 == len(list((tmp_path / "out/imported").glob("gpt-*")))


def as_dtype(kind: torch.dtype) -> Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]:
    return lambda tensors: {name: tensor.to(kind) for name, tensor in tensors.items()}


def fused(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors with one for all experts, as the memory of transformers 5 has them."""
    made: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        prefix, expert, rest = name.partition("experts.")
        if not expert:
            made[name] = tensor
            continue
        number = int(rest.split(".")[0])
        one = {kind: tensors[f"{prefix}experts.{number}.{kind}_proj.weight"] for kind in ("gate", "up", "down")}
        both = [torch.cat((one["gate"], one["up"])), one["down"]]
        for target in ("gate_up_proj", "down_proj"):
            made.setdefault(f"{prefix}experts.{target}", torch.zeros(0))
        if rest.endswith("down_proj.weight"):
            for target, value in zip(("gate_up_proj", "down_proj"), both, strict=True):
                before = made[f"{prefix}experts.{target}"]
                made[f"{prefix}experts.{target}"] = torch.cat((before, value[None])) if before.numel() else value[None]
    return made


@pytest.mark.parametrize(
    "spelling", ["bfloat16", "float16", "float64", "fused", "num_local_experts", "rope_parameters"]
)
def test_other_spellings_of_the_same_model(spelling: str, model: Path, tmp_path: Path, data: list[str]) -> None:
    """Types, fused experts and names of either version of transformers lead to the same weights and settings."""
    tensors = load_file(model / "model.safetensors")
    if spelling in ("bfloat16", "float16"):  # equal in all types
        tensors = as_dtype(torch.float32)(as_dtype(getattr(torch, spelling))(tensors))
        save_file(tensors, model / "model.safetensors")
    first, _ = import_folder(model, tmp_path / "out", data)
    config = json.loads((model / "config.json").read_text())
    if spelling == "num_local_experts":
        config["num_local_experts"] = config.pop("num_experts")
    if spelling == "rope_parameters":
        config["rope_parameters"] = {"rope_type": "default", "rope_theta": config.pop("rope_theta")}
        del config["rope_scaling"]
    (model / "config.json").write_text(json.dumps(config))
    change = fused if spelling == "fused" else as_dtype(getattr(torch, spelling, torch.float32))
    save_file({name: tensor.contiguous() for name, tensor in change(tensors).items()}, model / "model.safetensors")
    second, _ = import_folder(model, tmp_path / "out", data)
    weights, others = tensors_of(first), tensors_of(second)
    assert weights.keys() == others.keys()
    assert [] == [name for name in weights if not torch.equal(weights[name], others[name])]
    assert first.config_dict() == second.config_dict()


def test_settings_of_the_model_are_fixed(model: Path, tmp_path: Path, data: list[str]) -> None:
    """The context may be shorter than that of the model, not longer, and its width is not a choice."""
    shorter, _ = import_folder(model, tmp_path / "out", [*data, "model.context_length=8"])
    assert 8 == shorter.config().model.context_length
    with pytest.raises(ConfigError, match="more than the model"):
        import_folder(model, tmp_path / "out", [*data, "model.context_length=25"])
    with pytest.raises(ConfigError, match=r"'model\.d_model' cannot be set"):
        import_folder(model, tmp_path / "out", [*data, "model.d_model=8"])


# --- hostile folders


def refusal(model: Path, tmp_path: Path, data: list[str]) -> str:
    """The message of the command about a folder that it refuses: at most three lines, exit code 2, and no run is left."""
    result = moe("import", model, *data, "--outputs", tmp_path / "out")
    assert result.exit_code == 2, result.output
    assert 1 <= len(result.stderr.strip().splitlines()) <= 3
    assert "Traceback" not in result.stderr
    assert not list((tmp_path / "out").rglob("config.json"))
    return str(result.stderr)


CONFIGS: dict[str, tuple[Any, str]] = {
    "not a number": ('{"model_type": "qwen3_moe", "rms_norm_eps": NaN}', "number NaN"),
    "an infinity": ('{"model_type": "qwen3_moe", "rms_norm_eps": 1e999}', "number inf"),
    "not JSON": ("import os", "not valid JSON"),
    "deep": ("[" * 100_000, "config.json"),
    "code": ({"auto_map": {"AutoModel": "evil.Model"}}, "auto_map"),
    "quantised": ({"quantization_config": {"quant_method": "awq"}}, "quantization_config"),
    "another architecture": ({"model_type": "mamba"}, "model_type=mamba"),
    "lines of text": ({"model_type": "\x1b[31m\na\nb\nc"}, "model_type="),
    "no architecture": ({"model_type": ["qwen3_moe"]}, "model_type="),
    "unknown positions": ({"rope_scaling": {"rope_type": "longrope", "factor": 2}}, "rope_type=longrope"),
    "positions that are no table": ({"rope_scaling": [1]}, "rope_parameters"),
    "reference": ({"hidden_size": "${oc.env:HOME}"}, "hidden_size="),
    "reference in text": ({"hidden_act": "${oc.env:HOME}"}, "hidden_act="),
    "reference in positions": ({"rope_theta": "${oc.env:HOME}"}, "rope_theta="),
    "huge": ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000"),
    "many layers": ({"num_hidden_layers": 9_999}, "tensors for 9999 layers"),
    "negative": ({"hidden_size": -4}, "hidden_size"),
    "zero heads": ({"num_attention_heads": 0}, "num_attention_heads"),
    "list": ({"num_experts": [4]}, "num_experts"),
    "layers that are no list": ({"mlp_only_layers": 3}, "decoder_sparse_step"),
    "attention bias": ({"attention_bias": True}, "attention_bias=true"),
    "window": ({"use_sliding_window": True}, "use_sliding_window=true"),
    "another width": ({"moe_intermediate_size": 48}, "has shape"),
    "another vocabulary": ({"vocab_size": 300}, "has shape"),
}


@pytest.mark.parametrize("name", CONFIGS)
def test_a_bad_config_is_refused(name: str, model: Path, tmp_path: Path, data: list[str]) -> None:
    """A value that is not usable is named, and nothing in it is interpreted."""
    content, expected = CONFIGS[name]
    if isinstance(content, str):
        (model / "config.json").write_text(content)
    else:
        change_config(model, **content)
    printed = refusal(model, tmp_path, data)
    assert expected in printed
    assert os.environ["HOME"] not in printed


NAMES = ["hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "hidden_act"]
NAMES += ["max_position_embeddings", "rms_norm_eps", "rope_theta", "rope_scaling", "rope_parameters", "layer_types"]
NAMES += [
    "num_experts",
    "num_experts_per_tok",
    "norm_topk_prob",
    "mlp_only_layers",
    "decoder_sparse_step",
    "vocab_size",
]
NAMES += ["sliding_window", "tie_word_embeddings", "n_shared_experts", "v_head_dim", "n_group", "model_type"]
ROPE = [{"rope_type": kind, "factor": 2, key: "x"} for kind in ("linear", "yarn") for key in ("factor", "beta_fast")]
VALUES = [None, "x", -1, 0, 1.5, [], [1], {"a": 1}, True, 10**30, 1e308, *ROPE]


@settings(max_examples=150)
@given(st.sampled_from(sorted(FAMILIES)), st.dictionaries(st.sampled_from(NAMES), st.sampled_from(VALUES), max_size=2))
def test_no_value_of_a_config_is_a_crash(exported: Path, family: str, changes: dict[str, Any]) -> None:
    """Any value of any type is taken or refused, in at most three lines."""
    config = {**json.loads((exported / "config.json").read_text()), "model_type": family, **changes}
    message = ""
    try:
        to_our_settings(TheirConfig(config))
    except MoeError as error:
        message = str(error)
    assert len(message.splitlines()) <= 3


def header(described: dict[str, Any], values: int) -> bytes:
    text = json.dumps(described).encode()
    return struct.pack("<Q", len(text)) + text + bytes(values)


def one(dtype: str = "F32", shape: Any = (2,), offsets: Any = (0, 8)) -> dict[str, Any]:
    return {"a": {"dtype": dtype, "shape": shape, "data_offsets": offsets}}


FILES: dict[str, bytes] = {
    "empty": b"",
    "huge header": struct.pack("<Q", 2**63) + b"{}",
    "header beyond the file": struct.pack("<Q", 1000) + b"{}",
    "header of 100 MB": struct.pack("<Q", 10**8) + b" " * 100,
    "not JSON": struct.pack("<Q", 4) + b"evil",
    "beyond the end": header(one(), 4),
    "more than described": header(one(), 12),
    "overlap": header({**one(), "b": one()["a"]}, 8),
    "gap": header(one(offsets=(4, 12)), 12),
    "negative": header(one(shape=[-2]), 8),
    "not whole": header(one(shape=[2.0]), 8),
    "bool": header(one(shape=[True, 2]), 8),
    "wrong size": header(one(shape=[3]), 8),
    "product too large": header(one(shape=[2**40, 2**40]), 8),
    "no shape": header({"a": {"dtype": "F32"}}, 0),
    "no description": header({"a": 3}, 0),
    "type that is a list": header({"a": {"dtype": ["F32"], "shape": [2], "data_offsets": [0, 8]}}, 8),
    "another type": header(one(dtype="F8_E4M3", offsets=(0, 2)), 2),
}


@pytest.mark.parametrize("name", FILES)
def test_a_bad_tensor_file_is_refused(name: str, tmp_path: Path) -> None:
    """A header that does not describe the file exactly is not believed."""
    (tmp_path / "model.safetensors").write_bytes(FILES[name])
    with pytest.raises(Unreadable):
        TensorFile(tmp_path / "model.safetensors")


def drop(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        tensors = load_file(model / "model.safetensors")
        save_file({key: value for key, value in tensors.items() if key != name}, model / "model.safetensors")

    return change


def add(name: str, value: torch.Tensor) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        save_file({**load_file(model / "model.safetensors"), name: value}, model / "model.safetensors")

    return change


def only_pickles(model: Path) -> None:
    (model / "model.safetensors").unlink()
    (model / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/executed'\ntR.")


def link(name: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).rename(model.parent / "elsewhere")
        (model / name).symlink_to(model.parent / "elsewhere")

    return change


def index(place: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / "model.safetensors.index.json").write_text(json.dumps(place))

    return change


FOLDERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "only pickles": (only_pickles, "pytorch_model.bin"),
    "no weights": (lambda model: (model / "model.safetensors").unlink(), "has no model.safetensors"),
    "no config": (lambda model: (model / "config.json").unlink(), "has no config.json"),
    "no tokenizer": (lambda model: (model / "tokenizer.json").unlink(), "has no tokenizer.json"),
    "linked weights": (link("model.safetensors"), "is a link"),
    "linked config": (link("config.json"), "is a link"),
    "linked tokenizer": (link("tokenizer.json"), "is a link"),
    "pipe": (lambda model: ((model / "config.json").unlink(), os.mkfifo(model / "config.json")), "is not a file"),
    "index to the outside": (index({"weight_map": {"a": "../elsewhere.safetensors"}}), "only safetensors files"),
    "index to anywhere": (index({"weight_map": {"a": "/etc/passwd"}}), "only safetensors files"),
    "index to a pickle": (index({"weight_map": {"a": "pytorch_model.bin"}}), "only safetensors files"),
    "index of a tensor that is not there": (index({"weight_map": {"a": "model.safetensors"}}), "which lacks it"),
    "index of no file": (index({"weight_map": {"a": "other.safetensors"}}), "has no other.safetensors"),
    "index without names": (index({"weight_map": [1]}), "no weight_map"),
    "missing tensor": (drop("model.layers.0.mlp.experts.1.up_proj.weight"), "experts.1.up_proj.weight is missing"),
    "missing norm": (drop("model.norm.weight"), "model.norm.weight is missing"),
    "path as a name": (add("../../evil", torch.zeros(2)), "../../evil has no place"),
    "lines and colours as a name": (add("a\x1b[31m\nb\nc\nd", torch.zeros(2)), "a?[31m?b?c?d has no place"),
    "one layer more": (add("model.layers.9.input_layernorm.weight", torch.zeros(2)), "has no place"),
    "another shape": (add("model.norm.weight", torch.zeros(3)), "has shape [3]"),
    "transposed": (add("model.layers.0.mlp.gate.weight", torch.zeros(2, 4)), "has shape [2, 4]"),
    "not finite": (lambda model: _spoil(model), "not finite"),
}


def _spoil(model: Path) -> None:
    tensors = load_file(model / "model.safetensors")
    tensors["model.norm.weight"][0] = float("nan")
    save_file(tensors, model / "model.safetensors")


@pytest.mark.parametrize("name", FOLDERS)
def test_a_hostile_folder_is_refused(name: str, model: Path, tmp_path: Path, data: list[str]) -> None:
    """The file or the tensor is named; no pickle is opened, no link is followed, and no run is made."""
    change, expected = FOLDERS[name]
    change(model)
    assert expected in refusal(model, tmp_path, data)
    assert not Path("/tmp/executed").exists()


def test_no_folder_is_refused(tmp_path: Path, data: list[str]) -> None:
    """The line says how a folder is had from the hub."""
    assert "hf download" in refusal(tmp_path / "absent", tmp_path, data)


def test_tensor_files_are_read_as_they_were_written(tmp_path: Path) -> None:
    """Any part of any tensor is read; safetensors reads the same file."""
    values = {
        "a": np.arange(12, dtype=np.float32).reshape(3, 4),
        "empty": np.zeros((0, 2), np.float32),
        "b": np.ones(1, np.float32),
    }
    tensors = [NewTensor(name, value.shape, lambda value=value: [value]) for name, value in values.items()]
    with open(tmp_path / "x.safetensors", "wb") as file:
        write_tensors(file, tensors)
    with TensorFile(tmp_path / "x.safetensors") as read:
        assert [3.0, 4.0, 5.0] == read.read("a", 3, 3).tolist()
        assert [] == read.read("empty", 0, 0).tolist()
    assert {name: value.tolist() for name, value in values.items()} == {
        name: value.tolist() for name, value in load_file(tmp_path / "x.safetensors").items()
    }


def test_the_experts_of_an_evaluation_are_exported(tmp_path: Path) -> None:
    """With eval.k the exported model uses as many experts as `moe eval`, and weights that sum to 1 as in training."""
    run, _ = random_run(tmp_path / "out", [*our_settings("mixtral", 0), "model.qk_norm=true", "k=2", "eval.k=1"], 0)
    export_run(run, tmp_path / "out", tmp_path / "model")
    config = json.loads((tmp_path / "model/config.json").read_text())
    assert (1, True) == (config["num_experts_per_tok"], config["norm_topk_prob"])


@pytest.mark.parametrize("name", ["model.safetensors", "model.onnxx"])
def test_a_name_like_that_of_a_file_is_no_folder(tmp_path: Path, name: str) -> None:
    """A mistyped ending makes no folder; --format hf does, and a version has no ending."""
    result = CliRunner().invoke(app, ["export", "latest", str(tmp_path / name), "--outputs", str(tmp_path)])
    assert result.exit_code == 2
    assert "looks like a file, and files end in .onnx or .gguf" in result.stderr
    result = CliRunner().invoke(app, ["export", "latest", str(tmp_path / "model-v1.5"), "--outputs", str(tmp_path)])
    assert "no runs in" in result.stderr
