"""Documents apart: attention within one, windows of one and padding. L positions."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from moe_cli.cli.app import app
from moe_cli.config.compose import load_config
from moe_cli.config.data import TextFilesConfig
from moe_cli.config.tasks import MaskedLM
from moe_cli.data.corpora import load_corpus
from moe_cli.data.document_windows import document_windows
from moe_cli.data.load import data_notes
from moe_cli.errors import ConfigError, DataError
from moe_cli.execution.data import load_run_data
from moe_cli.execution.run import run_one
from moe_cli.execution.trained_model import load_trained
from moe_cli.models.registry import make_model
from moe_cli.runs.folder import create_run
from moe_cli.tasks.causal_lm import IGNORE_INDEX, TextBatch
from moe_cli.tasks.registry import make_task
from moe_cli.training.checkpoint import find_checkpoint
from moe_cli.training.evaluate import evaluate
from tests.data.test_corpora import write
from tests.runner import CliRunner
from tests.tiny import TINY, finish, randomise, tiny_config, words

L = 16
TEXTS = {f"{'ab'[n % 2]}/{n}.txt": words(5 + 3 * n, n) for n in range(20)}  # shorter and longer than a window


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(tmp_path_factory.mktemp("documents") / "text", TEXTS)


def config_of(folder: Path, packing: str, family: str = "gpt", **changes: Any) -> Any:
    data = TextFilesConfig(path=str(folder), packing=packing, val_fraction=0.3)  # type: ignore[arg-type]
    return tiny_config(folder, **{**TINY.get(family, {}), "data": data, **changes})


def task_of(folder: Path, outputs: Path, packing: str, family: str = "gpt") -> Any:
    config = config_of(folder, packing, family)
    return make_task(config, load_run_data(config, outputs))


def model_of(folder: Path, family: str = "gpt") -> torch.nn.Module:
    config = config_of(folder, "concat", family)
    return randomise(make_model(config, 256 + config.task.special_tokens)).eval()


def split_texts(split: Any) -> list[str]:
    return bytes(split.tolist()).decode().split("\0")[:-1]


@given(st.lists(st.integers(1, 40), min_size=1, max_size=9), st.integers(1, 12))
def test_windows_of_documents(lengths: list[int], length: int) -> None:
    """Every token is in one window, no window holds two documents or more than its length, none is empty."""
    begins = np.cumsum([0, *lengths[:-1]])
    windows = document_windows(begins, sum(lengths), length)
    covered = [(start, size) for start, size in zip(windows.starts.tolist(), windows.sizes.tolist(), strict=True)]
    assert list(range(sum(lengths))) == [place for start, size in covered for place in range(start, start + size)]
    home = np.repeat(np.arange(len(lengths)), lengths)
    assert all(home[start] == home[start + size - 1] and 1 <= size <= length for start, size in covered)
    assert sum(-(-each // length) for each in lengths) == len(covered)
    assert windows.sizes.tolist() == windows.sizes_at(windows.starts).tolist()


def shown(batch: TextBatch) -> list[tuple[bytes, bytes]]:
    assert batch.mask is not None
    return [
        (bytes(row[mask].tolist()), bytes(target[mask].tolist()))
        for row, target, mask in zip(batch.inputs, batch.targets, batch.mask, strict=True)
    ]


def test_each_window_is_one_document(folder: Path, tmp_path: Path) -> None:
    """After a separator its text, in turn its text and a separator: what does not fit goes on in the next window."""
    task = task_of(folder, tmp_path, "pad")
    expected = []
    for text in split_texts(task.dataset.val):
        whole = f"\0{text}\0".encode()
        expected += [
            (whole[at : at + L][: len(whole) - 1 - at], whole[at + 1 : at + L + 1])
            for at in range(0, len(whole) - 1, L)
        ]
    batches = list(task.val_batches(3))
    assert expected == [window for batch in batches for window in shown(batch)]
    assert (
        len(task.dataset.val)
        == sum(batch.num_targets for batch in batches)
        == sum(batch.num_bytes for batch in batches)
    )
    for batch in batches:
        assert (batch.targets[~batch.mask] == IGNORE_INDEX).all()
        assert (3, L) >= tuple(batch.inputs.shape)


def test_an_epoch_sees_every_window_once(folder: Path, tmp_path: Path) -> None:
    """In an order of its own, which another process finds again."""
    tasks = [task_of(folder, outputs, "pad") for outputs in (tmp_path, tmp_path / "other")]
    number = len(tasks[0]._windows(tasks[0].dataset.train).starts)
    epochs = [
        [shown(task.train_batch(first + index, 1))[0] for index in range(number)]
        for task in tasks
        for first in (0, number)
    ]
    texts = [part for text in split_texts(tasks[0].dataset.train) for part in range(0, len(text.encode()) + 1, L)]
    assert len(texts) == number
    assert sorted(epochs[0]) == sorted(epochs[1])
    assert epochs[0] != epochs[1]
    assert epochs[:2] == epochs[2:]


@pytest.mark.parametrize("family", ["gpt", "bert", "lstm"])
def test_padding_never_reaches_a_router(folder: Path, tmp_path: Path, family: str) -> None:
    """The router gets exactly the real tokens of a padded batch, with their numbers."""
    task, model = task_of(folder, tmp_path, "pad", family), model_of(folder, family)
    batch = next(task.val_batches(8))
    real = int(batch.mask.sum())
    assert real < batch.mask.numel()
    seen: list[Tensor] = []
    for module in model.modules():
        if type(module).__name__.endswith("Router"):
            module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    _, routings = task.loss(model, batch)
    assert len(routings) == len(seen) == 2
    for routing, tokens in zip(routings, seen, strict=True):
        assert real == len(tokens) == routing.num_tokens
        assert set(range(real)) == set(routing.token_ids.tolist())
    ids, domains = task.routed_ids_and_domains(batch)[0]
    assert batch.inputs[batch.mask].tolist() == ids.tolist()
    assert real == len(domains)


@pytest.mark.parametrize("family", ["gpt", "lstm"])
def test_a_padded_batch_is_its_documents_alone(folder: Path, tmp_path: Path, family: str) -> None:
    """Its loss is the mean over the tokens of each window by itself, without padding; what stands there is no matter."""
    task, model = task_of(folder, tmp_path, "pad", family), model_of(folder, family)
    batch = next(task.val_batches(6))
    nats = []
    for inputs, targets in shown(batch):
        logits = model(torch.tensor([list(inputs)]))[0][0]
        nats += torch.nn.functional.cross_entropy(logits, torch.tensor(list(targets)), reduction="none").tolist()
    assert batch.num_targets == len(nats)
    assert sum(nats) / len(nats) == pytest.approx(task.loss(model, batch)[0].item(), rel=1e-5)
    assert sum(nats) / len(nats) == pytest.approx(task.score(model, batch).loss.item(), rel=1e-5)
    other = replace(batch, inputs=torch.where(batch.mask, batch.inputs, 65))
    assert torch.equal(task.loss(model, batch)[0], task.loss(model, other)[0])


def test_documents_in_one_window_are_as_alone(folder: Path, tmp_path: Path) -> None:
    """isolate: logits of each are those of the document in a window of its own, a separator before it."""
    task, model = task_of(folder, tmp_path, "isolate"), model_of(folder)
    checked, joined = 0, []
    for batch in task.val_batches(2):
        logits = model(batch.inputs, documents=batch.documents)[0]
        for row, numbers, out in zip(batch.inputs, batch.documents, logits, strict=True):
            for number in numbers.unique():
                alone = row[numbers == number]
                assert 0 not in alone[1:].tolist()  # a separator begins a document
                assert torch.allclose(model(alone[None])[0][0], out[numbers == number], atol=1e-4)
                checked += len(alone) < len(row)
        joined.append(torch.allclose(model(batch.inputs)[0], logits, atol=1e-2))
    assert checked > 5
    assert not all(joined)  # without, they see each other


def test_masked_tokens_are_real(folder: Path, tmp_path: Path) -> None:
    """Each padded window hides its share of real positions; the pseudo-perplexity task hides one a window."""
    task = task_of(folder, tmp_path, "pad", "bert")
    for batch in task.val_batches(4):
        sizes = batch.mask.sum(1)
        asked = (batch.targets != IGNORE_INDEX).sum(1)
        assert [max(1, round(0.15 * size)) for size in sizes.tolist()] == asked.tolist()
        assert not (batch.targets[~batch.mask] != IGNORE_INDEX).any()
        assert asked.sum() == batch.num_targets == batch.to(torch.device("cpu")).num_targets
    pseudo_perplexity_task = list(task.pseudo_perplexity_task().val_batches(5))
    assert all((batch.targets != IGNORE_INDEX).sum(1).eq(1).all() for batch in pseudo_perplexity_task)
    assert all(batch.mask[batch.targets != IGNORE_INDEX].all() for batch in pseudo_perplexity_task)
    assert 1 < evaluate(model_of(folder, "bert"), task.pseudo_perplexity_task(), 5).perplexity


def test_domains_follow_documents(folder: Path, tmp_path: Path) -> None:
    """The loss of each domain is over its own documents, as many tokens as they have."""
    task, model = task_of(folder, tmp_path, "pad"), model_of(folder)
    result = evaluate(model, task, 4)
    sizes = {"a": 0, "b": 0}
    home = {text: name[0] for name, text in TEXTS.items()}
    for text in split_texts(task.dataset.val):
        sizes[home[text]] += len(text.encode()) + 1
    weighted = sum(result.domain_losses[name] * size for name, size in sizes.items())
    assert weighted / result.num_tokens == pytest.approx(result.loss, rel=1e-6)
    assert result.num_tokens == sum(sizes.values()) == result.layers[0].num_tokens


@pytest.mark.parametrize(
    ("family", "packing", "tokenizer"),
    [
        ("gpt", "pad", "bytes"),
        ("gpt", "isolate", "bpe"),
        ("bert", "pad", "chars"),
        pytest.param("lstm", "pad", "bytes", marks=pytest.mark.slow),
    ],
)
def test_a_run_goes_on_as_if_nothing_had_happened(
    folder: Path, tmp_path: Path, family: str, packing: str, tokenizer: str
) -> None:
    """Stopped after three of six steps, the weights at the end are those of a run that was not, to the last bit."""
    changes = {
        "data": TextFilesConfig(
            path=str(folder),
            packing=packing,
            tokenizer=tokenizer,
            val_fraction=0.3,
            bpe_vocab=300 if tokenizer == "bpe" else None,
        )
    }
    if family == "bert":
        changes["task"] = MaskedLM(pseudo_perplexity_tokens=8)
    config = config_of(folder, packing, family, **changes, train={"checkpoint_every": 3})
    whole = finish(config, tmp_path / "whole")
    stopped = create_run(tmp_path / "stopped", "runs", config)

    def stop(view: Any) -> None:
        if view.state.step == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run_one(stopped, tmp_path / "stopped", stop)
    assert 3 == find_checkpoint(stopped, "latest").state["step"]
    run_one(stopped, tmp_path / "stopped")
    one, two = (load_trained(run, run.path.parents[1]).model.state_dict() for run in (whole, stopped))
    assert all(torch.equal(one[name], two[name]) for name in one)
    assert whole.summary()["val_loss"] == stopped.summary()["val_loss"]  # type: ignore[index]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            ["model=lstm", "data.packing=isolate"],
            "data.packing=isolate: model=lstm has no attention to isolate. Use data.packing=pad",
        ),
        (
            ["model=bert", "router=soft", "data.packing=pad"],
            "data.packing=pad: router=soft mixes all tokens of a window. Use data.packing=concat",
        ),
        (
            ["router=relu", "data.packing=pad"],
            "data.packing=pad: router=relu assumes full windows. Use data.packing=isolate",
        ),
        (
            ["balance.scope=sequence", "data.packing=pad"],
            "data.packing=pad: balance.scope=sequence needs windows of equal length. Use data.packing=isolate",
        ),
        (
            ["model=t5", "data.packing=pad"],
            "data.packing=pad: spans are removed from whole windows. Use data.packing=concat",
        ),
        (
            ["train.grad_accumulation=2", "data.packing=pad"],
            "data.packing=pad: train.grad_accumulation averages windows of equal length. Use data.packing=isolate",
        ),
        (
            ["launch.num_processes=2", "data.packing=pad"],
            "data.packing=pad: launch.num_processes divides windows of equal length. Use data.packing=isolate",
        ),
    ],
)
def test_what_is_refused(given: list[str], message: str) -> None:
    """A packing that the model or a setting cannot take is refused, and the error names another packing."""
    with pytest.raises(ConfigError) as error:
        load_config(given)
    assert message == str(error.value)
    assert load_config(
        [*given, "expert=1"] if "router" in given[0] and "bert" not in given[0] else ["data.packing=pad"]
    )


def test_one_document_cannot_be_separated(text_file: Path, tmp_path: Path) -> None:
    """A single file with data.packing=pad is refused."""
    with pytest.raises(
        DataError, match=r"is one document, and data.packing=pad needs several. Use data.packing=concat"
    ):
        load_corpus(TextFilesConfig(path=str(text_file), packing="pad"), L, tmp_path)


def test_how_much_is_padding_is_said(folder: Path, tmp_path: Path) -> None:
    """The share of positions of training windows that hold nothing."""
    config = config_of(folder, "pad")
    corpus = load_run_data(config, tmp_path)
    sizes = [len(text.encode()) + 1 for text in split_texts(corpus.train)]
    share = 1 - sum(sizes) / (L * sum(-(-size // L) for size in sizes))
    assert f"{100 * share:.0f} % of the training tokens are padding, which counts towards the budget" in data_notes(
        corpus, config
    )


@pytest.mark.parametrize("packing", ["concat", "isolate", "pad"])
def test_a_text_is_explained_as_documents_were_read(folder: Path, tmp_path: Path, packing: str) -> None:
    """The prompt begins with a separator if documents were kept apart; weights are those of the task's padded batch."""
    config = tiny_config(folder, data={"path": str(folder), "packing": packing}, model={"context_length": L})
    run = finish(config, tmp_path)
    trained = load_trained(run, tmp_path)
    padded = make_task(replace(config, data=replace(config.data, packing="pad")), load_run_data(config, tmp_path))
    batch = next(padded.val_batches(1))
    read = batch.inputs[0][batch.mask[0]].tolist()
    text = trained.task.dataset.tokenizer.decode(read[1:])
    words = ["explain", run.id, text, "--outputs", str(tmp_path)]
    found = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    ids = [token["id"] for token in found["tokens"]]
    assert (read if packing != "concat" else read[1:]) == ids == trained.task.prompt(text)
    assert text == "".join(token["text"] for token in found["tokens"])
    screen = CliRunner().invoke(app, words).stdout
    assert (
        (packing != "concat")
        == any(line.split()[:1] == ["sep"] for line in screen.splitlines())
        == ("In training, documents were kept separate: sep" in screen)
    )
    if packing == "concat":
        return
    with torch.no_grad():
        routings = batch.forward(trained.model)[1]
    for layer, routing in zip(found["layers"], routings, strict=True):
        weights = torch.zeros(len(ids), routing.num_experts)
        for token, choices in enumerate(layer["choices"]):
            for choice in choices:
                weights[token, choice["expert"]] = choice["weight"]
        expected = torch.zeros_like(weights)
        expected[routing.token_ids, routing.expert_ids] = routing.weights
        torch.testing.assert_close(expected, weights)
