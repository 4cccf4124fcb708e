"""A run scores text as `moe eval` does, and continues it as `moe sample` does."""

import math
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch

from moe_cli.errors import ConfigError, MoeError
from moe_cli.exchange.tokenizer import generation_config
from moe_cli.execution.trained_model import TrainedModel, load_trained
from moe_cli.harness.generation import Generation, read_generation
from moe_cli.harness.text_model import TextModel
from moe_cli.runs.folder import Run
from moe_cli.training.evaluate import eval_policy, evaluate
from moe_cli.training.generate import SamplingParams, sample
from tests.tiny import TINY, finish, tiny_config, words

GREEDY = Generation(12, (), SamplingParams(0.0))


def trained_on(folder: Path, **changes: Any) -> TrainedModel:
    """A run with a train and a validation file; the validation text and its separator fill windows of 16 tokens."""
    for name, size in (("train", 3000), ("val", 16 * 9 - 1)):
        (folder / name).mkdir()
        (folder / name / "a.txt").write_text(words(size, seed=len(name)))
    config = tiny_config(folder, **changes)
    run = finish(config, folder / "out")
    return load_trained(run, folder / "out")


def evaluated(trained: TrainedModel) -> Any:
    policy = eval_policy(trained.config.eval)
    return evaluate(trained.model, trained.task, 4, policy=policy, precision=trained.config.train.precision)


@pytest.mark.parametrize("stride", [None, 4])
def test_a_text_is_scored_as_by_eval(tmp_path: Path, stride: int | None) -> None:
    """With a separator first, the windows of a text are those of `moe eval` on a validation split that is this text."""
    trained = trained_on(tmp_path, data={"packing": "isolate"}, eval={"stride": stride})
    model, result = TextModel(trained, 5), evaluated(trained)
    text = (tmp_path / "val/a.txt").read_text() + "\0"
    (score,) = model.score([([model.prefix], model.encode(text))])
    assert result.num_bytes == len(text)
    assert result.bits_per_byte == pytest.approx(-score.log_prob / math.log(2) / len(text), abs=1e-6)


def test_without_separators_the_first_token_is_context(tmp_path: Path) -> None:
    """With packing=concat `moe eval` does not score the first token: it is the context of the others."""
    trained = trained_on(tmp_path, eval={"stride": 1})
    model, result = TextModel(trained, 5), evaluated(trained)
    tokens = model.encode((tmp_path / "val/a.txt").read_text() + "\0")
    (score,) = model.score([(tokens[:1], tokens[1:])])
    assert result.num_tokens == len(tokens) - 1
    assert result.loss == pytest.approx(-score.log_prob / result.num_tokens, abs=1e-6)


def check_scores(model: TextModel, filled: bool) -> None:
    """Compares the scores of texts of all lengths with those of each alone, or followed by other tokens if `filled`."""
    pairs = [(model.encode("ba"), model.encode(words(length, seed=length))) for length in range(1, 9)]
    policy = eval_policy(model.config.eval)
    for score, (context, continuation) in zip(model.score(pairs), pairs, strict=True):
        read = [*context, *continuation[:-1]]
        inputs = torch.tensor([read + [101] * (16 - len(read)) * filled])
        with torch.no_grad():
            logits = model.trained.model(inputs, policy=policy)[0][0, len(context) - 1 : len(read)]
        rows = logits.log_softmax(-1)[range(len(continuation)), continuation]
        assert score.log_prob == pytest.approx(rows.sum().item(), abs=1e-4)
        assert score.is_greedy == (logits.argmax(-1).tolist() == continuation)


@pytest.mark.parametrize("changes", [{}, TINY["lstm"]], ids=["gpt", "lstm"])
def test_padding_changes_no_score(tmp_path: Path, changes: dict[str, Any]) -> None:
    """Texts of different lengths in one batch have the scores that each has alone."""
    check_scores(TextModel(trained_on(tmp_path, **changes), 64), filled=False)


@pytest.mark.parametrize(("drop", "batch_size"), [("causal", 64), ("position", 1)])
def test_padding_takes_no_capacity(tmp_path: Path, drop: str, batch_size: int) -> None:
    """The capacity is that of a window of full length with drop=causal, else that of the tokens in the batch."""
    trained = trained_on(tmp_path, eval={"k": 1, "capacity": 0.6, "drop": drop})
    check_scores(TextModel(trained, batch_size), filled=drop == "causal")


def test_text_is_continued_as_by_sample(finished: Run) -> None:
    """Greedy text equals that of `moe sample`, ends before a stop, and is a greedy continuation to `score`."""
    model = TextModel(load_trained(finished, finished.path.parents[1]), 4)
    prompt = model.encode("ba de")
    ids = list(islice(sample(model.trained.model, prompt, 11, 16, GREEDY.sampling, 0), 11))
    text = model.tokenizer.decode(ids)
    assert text == model.generate("ba de", Generation(11, (), SamplingParams(0.0)), 0)
    stop = text[5:7]
    assert text[: text.find(stop)] == model.generate("ba de", read_generation({"until": [stop], "max_gen_toks": 11}), 0)
    assert model.score([(prompt, ids)])[0].is_greedy
    assert not model.score([(prompt, [*ids[:-1], ids[-1] ^ 1])])[0].is_greedy


def test_a_long_prompt_is_cut_from_the_left(finished: Run) -> None:
    """Prompt and text fit into the context; a text that alone does not fit is written with the last tokens."""
    model = TextModel(load_trained(finished, finished.path.parents[1]), 4)
    assert model.generate("ba de ki lo mu"[-4:], GREEDY, 0) == model.generate("ba de ki lo mu", GREEDY, 0)
    assert 40 == len(model.generate("ba de", Generation(40, (), SamplingParams(1.0)), 0))


@pytest.mark.parametrize(("text", "prefix"), [("a b\nc", 0), ("a b c", 0), ("\ta\nb", 1)])
def test_a_corpus_of_one_document_has_no_separator(text: str, prefix: int, tmp_path: Path) -> None:
    """Its characters lack one: a text begins after a newline, else after the first character, and ends nowhere."""
    (tmp_path / "a.txt").write_text(text * 300)
    config = tiny_config(tmp_path / "a.txt", data={"tokenizer": "chars"})
    model = TextModel(load_trained(finish(config, tmp_path / "out"), tmp_path / "out"), 4)
    assert (None, prefix) == (model.separator, model.prefix)
    assert 0 > model.score([(model.encode_context([]), model.encode("a"))])[0].log_prob
    assert 12 == len(model.generate("a", GREEDY, 0))
    assert generation_config(model.tokenizer)["eos_token_id"] is None


def test_a_device_is_chosen_or_refused(finished: Run) -> None:
    """The device of the run is replaced by one that exists."""
    outputs = finished.path.parents[1]
    assert "cpu" == next(load_trained(finished, outputs, device="cpu").model.parameters()).device.type
    with pytest.raises(MoeError, match="device=tpu is not one of"):
        load_trained(finished, outputs, device="tpu")


def test_only_models_of_text_are_used(finished: Run, text_file: Path) -> None:
    """A run of another task is refused in a line that names the task."""
    trained = load_trained(finished, finished.path.parents[1])
    other = replace(trained, config=tiny_config(text_file, **TINY["bert"]))
    with pytest.raises(ConfigError, match="task=masked_lm"):
        TextModel(other, 1)
