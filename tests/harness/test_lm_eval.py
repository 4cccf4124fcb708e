"""With lm_eval installed: its windows, its `--model hf` on an exported folder, and `moe eval` give the same figures."""

import math
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moe_cli.cli.app import app
from moe_cli.errors import MoeError
from moe_cli.exchange.export_run import export_run
from moe_cli.exchange.import_folder import import_folder
from moe_cli.harness.__main__ import MODEL, NAME, TASKS, main, register
from moe_cli.harness.windows import split_windows
from tests.exchange.random_models import our_settings, random_run
from tests.runner import CliRunner
from tests.tiny import finish, tiny_config, words

pytest.importorskip("lm_eval", reason="pip install 'moe-cli[eval]'; the test environment has no lm_eval")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.peers,
    pytest.mark.usefixtures("unchecked_shapes"),
    pytest.mark.filterwarnings("ignore"),  # of other libraries
]


def requests(kind: str, *arguments: tuple[Any, ...]) -> list[Any]:
    from lm_eval.api.instance import Instance

    return [Instance(kind, {}, each, number) for number, each in enumerate(arguments)]


@given(st.integers(1, 60), st.integers(1, 9), st.integers(1, 9))
def test_windows_are_those_of_lm_eval(num_tokens: int, length: int, stride: int) -> None:
    """A stride of all tokens is its default; a smaller one is its `context_len`."""
    from lm_eval.utils import get_rolling_token_windows

    stride, tokens = min(stride, length), list(range(1, num_tokens + 1))
    expected = list(get_rolling_token_windows(tokens, 0, length, length - stride + 1))
    windows = split_windows([0], tokens, length, stride)
    assert expected == [(list(window.inputs), list(window.targets)) for window in windows]


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "llama"])
def test_an_exported_run_has_the_same_figures(family: str, text_file: Path, tmp_path: Path) -> None:
    """Log-likelihoods, bits per byte and greedy text equal those of `--model hf`, over long and short texts."""
    pytest.importorskip("accelerate", reason="pip install 'lm_eval[hf]'")
    from lm_eval.models.huggingface import HFLM
    from transformers import AutoTokenizer

    from moe_cli.harness.model import MoELM

    made, _ = random_run(tmp_path / "out", our_settings(family, 0), 0)
    export_run(made, tmp_path / "out", tmp_path / "model")
    data = ["data=text", f"data.path={text_file}", "train.device=cpu"]
    run, _ = import_folder(tmp_path / "model", tmp_path / "out", data)
    ours = MoELM(run=run.id, outputs=tmp_path / "out", batch_size="3", device="cuda:0")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "model")
    tokenizer.eos_token = tokenizer.convert_ids_to_tokens(0)
    theirs = HFLM(pretrained=str(tmp_path / "model"), tokenizer=tokenizer, batch_size=2, device="cpu", dtype="float32")
    texts = [(words(size, seed=size),) for size in (1, 7, ours.max_length, 2 * ours.max_length, 100)]
    for (text,), expected, value in zip(
        texts,
        *(lm.loglikelihood_rolling(requests("loglikelihood_rolling", *texts)) for lm in (theirs, ours)),
        strict=True,
    ):
        assert value / len(text) / math.log(2) == pytest.approx(expected / len(text) / math.log(2), abs=1e-4)
    pairs = [(words(size, seed=1), " " + words(3 + size % 5, seed=2)) for size in range(1, 60, 7)]
    pairs += [("", "ba"), ("ba ", "de")]
    for expected, value in zip(
        *(lm.loglikelihood(requests("loglikelihood", *pairs)) for lm in (theirs, ours)), strict=True
    ):
        assert value == (pytest.approx(expected[0], abs=1e-4), expected[1])
    options = {"until": ["\n\n"], "max_gen_toks": 8}
    prompts = [(words(size, seed=3), options) for size in (3, 16, 50)]
    assert theirs.generate_until(requests("generate_until", *prompts)) == ours.generate_until(
        requests("generate_until", *prompts)
    )


def test_a_task_gives_the_bits_of_moe_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The task moe_text on the validation text, with the separator that ends it, and `moe eval` on that split."""
    import json

    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    for name, size in (("train", 3000), ("val", 16 * 9 - 1)):
        (tmp_path / "data" / name).mkdir(parents=True)
        (tmp_path / "data" / name / "a.txt").write_text(words(size, seed=len(name)))
    run = finish(tiny_config(tmp_path / "data", data={"packing": "isolate"}), tmp_path / "outputs")
    (tmp_path / "val.txt").write_text(words(16 * 9 - 1, seed=3) + "\0")
    monkeypatch.chdir(tmp_path)
    register()
    metadata = {"text": "val.txt"}
    results = simple_evaluate(
        "moe",
        {"run": run.id, "checkpoint": 6, "device": "cpu"},
        ["moe_text", "moe_probes"],
        limit=10,
        batch_size="auto",
        device="cuda:1",
        bootstrap_iters=0,
        metadata=metadata,
        task_manager=TaskManager(include_path=str(TASKS), include_defaults=False, metadata=metadata),
    )
    assert results is not None
    assert {"moe_text", "moe_agreement", "moe_brackets", "moe_last_word"} == set(results["results"])
    assert (run.id, 6) == (results["config"]["run"], results["config"]["step"])
    printed = CliRunner().invoke(app, ["eval", run.id, "--json"])
    (evaluation, *_) = json.loads(printed.stdout)["evaluations"]
    assert results["results"]["moe_text"]["bits_per_byte,none"] == pytest.approx(evaluation["val_bpb"], abs=1e-4)


def test_errors_are_single_lines(
    finished: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """An unknown argument, run, batch size and device end the command with exit code 2."""
    from moe_cli.harness.model import MoELM

    outputs = str(finished.path.parents[1])
    for arguments, message in [
        ({"runs": "a"}, "--model_args has runs. Known are run, outputs, checkpoint, batch_size and device."),
        ({"batch_size": "0"}, "batch_size=0 must be auto or a whole number above 0."),
        ({"device": "tpu"}, "device=tpu is not one of: auto, cpu, cuda, cuda:N."),
    ]:
        with pytest.raises(MoeError) as raised:
            MoELM(**{"outputs": outputs, **arguments})
        assert message == str(raised.value)
    model = MoELM.create_from_arg_string(f"outputs={outputs},batch_size=3", {"batch_size": 1, "max_batch_size": None})
    assert (finished.id, 3) == (model.get_model_info()["run"], model.batch_size)
    words = ["run", "--model", "moe", "--model_args", f"outputs={outputs},run=none", "--tasks", "moe_brackets"]
    monkeypatch.setattr(sys, "argv", ["moe", *words])
    assert 2 == main()
    assert "Traceback" not in (printed := capsys.readouterr().err)
    assert printed.splitlines()[-1].startswith("error: ")


def test_an_entry_point_is_a_model() -> None:
    """The registry of lm_eval imports the class from the entry point of this package."""
    from importlib.metadata import EntryPoint

    from lm_eval.api.model import LM
    from lm_eval.api.registry import Registry

    registry = Registry("model", base_cls=LM)
    registry.register(NAME, target=EntryPoint(NAME, MODEL, "lm_eval.models"))
    assert "MoELM" == registry.get(NAME).__name__
