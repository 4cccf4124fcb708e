"""One run from configuration to summary, and what is left when it fails."""

import errno
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch

import moe_cli
from moe_cli.config.optim import MuonConfig
from moe_cli.costs.model import estimate_cost
from moe_cli.data.load import SIZES
from moe_cli.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    DiskFull,
    LostProcess,
    MoeError,
    RunBusy,
    TrainingError,
)
from moe_cli.execution.failures import translate_exception
from moe_cli.execution.machine import oversubscription_warning, pick_device, pick_threads
from moe_cli.execution.run import run_one
from moe_cli.execution.trained_model import load_trained
from moe_cli.execution.worker import EXIT_BUSY, EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, main
from moe_cli.files.writing import write_json
from moe_cli.metrics import LAYER_METRICS
from moe_cli.moe.backends import dispatch
from moe_cli.moe.routing import RoutingPolicy
from moe_cli.runs.folder import Run, create_run
from moe_cli.runs.locks import lock
from moe_cli.runs.lookup import list_runs_by_age
from moe_cli.runs.recorder import Recorder
from moe_cli.tasks.causal_lm import TextTask
from moe_cli.training.evaluate import Evaluation, evaluate, expert_lists, probe_routing
from tests.tiny import finish, tiny_config, words

PROMISED = {
    "run",
    "status",
    "expert",
    "k",
    "capacity",
    "router",
    "balance",
    "seed",
    "params",
    "active_params",
    "flops_per_token",
    "val_loss",
    "val_bpb",
    "tokens_per_second",
    "max_violation",
    "dropped_fraction",
    "dead_experts",
}
MOE_ERRORS = [MoeError, *MoeError.__subclasses__(), *TrainingError.__subclasses__()]


def summary(run: Run) -> dict[str, Any]:
    content = run.summary()
    assert content is not None
    return content


def test_the_summary_has_the_promised_keys(finished: Run) -> None:
    """Plain keys with plain values: what the report and users' scripts read."""
    content = summary(finished)
    assert set(content) >= PROMISED
    assert all(isinstance(value, str | int | float) or value is None for value in content.values())
    config = finished.config()
    costs = estimate_cost(config, 256)
    expected = {
        "run": finished.id,
        "status": "completed",
        "expert": 4,
        "k": 2,
        "capacity": None,
        "router": "topk",
        "balance": "switch",
        "seed": 0,
        "params": costs.num_params,
        "active_params": costs.num_active_params,
        "flops_per_token": costs.flops_per_token,
        "model_flops_per_token": costs.model_flops_per_token,
        "optimizer_flops_per_step": costs.optimizer_flops_per_step,
        "non_embedding_params": costs.num_params - 2 * 256 * config.model.d_model,
        "tokens_per_expert": 6 * 64 * 2 / 4,
        "loss_gap": content["val_loss"] - content["train_loss"],
        "steps": 6,
        "tokens": 6 * 64,
        "dropped_fraction": 0.0,
        "capacity_val_loss": None,
        "corpus": "words.txt",
    }
    assert expected == {key: content[key] for key in expected}
    assert content["val_bpb"] == pytest.approx(content["val_loss"] / math.log(2))
    assert content["val_perplexity"] == pytest.approx(math.exp(content["val_loss"]))
    assert content["val_bytes"] == content["val_tokens"] == 599
    train_tokens = finished.meta()["corpus"]["train_tokens"]
    assert content["tokens"] / train_tokens == content["epochs"]
    assert content["tokens_per_second"] == pytest.approx(content["tokens"] / content["seconds"], rel=0.02)


def test_saturation_halfway_is_in_the_summary(text_file: Path, tmp_path: Path) -> None:
    """router_saturation is the mean over layers at the evaluation nearest to half the steps, or null without one."""
    run = finish(tiny_config(text_file, train={"steps": 6, "eval_every": 2}), tmp_path)
    trained = load_trained(run, tmp_path)
    final = probe_routing(trained.model, trained.task)
    records = [record for record in run.routing() if record.get("whole_split")]
    for record, layer in zip(records, final, strict=True):
        earlier = [one["choices"] for one in run.routing() if "choices" in one and one["layer"] == record["layer"]]
        shares = [
            sum(len({*old} & {*new}) for old, new in zip(one, expert_lists(layer), strict=True)) for one in earlier
        ]
        assert record["saturation"] == pytest.approx({"2": shares[0] / 512, "4": shares[1] / 512})
    halfway = [record["saturation"]["2"] for record in records]
    assert summary(run)["router_saturation"] == pytest.approx(sum(halfway) / 2)
    unseen = finish(tiny_config(text_file, train={"steps": 6, "eval_every": 99}), tmp_path)
    assert summary(unseen)["router_saturation"] is None


def test_a_dense_run_has_nulls_where_there_is_no_router(text_file: Path, tmp_path: Path) -> None:
    """The same keys, null for everything about routing."""
    run = finish(tiny_config(text_file, expert=1, k=1, train={"steps": 1}), tmp_path)
    content = summary(run)
    assert set(content) >= PROMISED
    assert all(content[key] is None for key in ("router", "balance", "capacity", "router_saturation", *LAYER_METRICS))
    assert content["params"] == content["active_params"]
    assert [] == run.routing()


def test_a_capacity_is_reported_with_the_dropless_loss(text_file: Path, tmp_path: Path) -> None:
    """val_loss drops nothing; capacity_val_loss is the same model under training's capacity."""
    run = finish(tiny_config(text_file, capacity=0.5), tmp_path)
    content = summary(run)
    trained = load_trained(run, tmp_path)
    assert evaluate(trained.model, trained.task, 4).loss == content["val_loss"]
    limited = evaluate(trained.model, trained.task, 4, policy=RoutingPolicy(capacity_factor=0.5))
    assert limited.loss == content["capacity_val_loss"]
    assert content["val_loss"] != content["capacity_val_loss"]
    assert "causal" == content["capacity_val_drop"]
    assert (limited.routing_metrics() or {})["dropped_fraction"] == content["dropped_fraction"] >= 0.5


def test_evaluation_has_a_k_and_a_capacity_of_its_own(text_file: Path, tmp_path: Path) -> None:
    """eval.k and eval.capacity decide the summary's figures, and those of the curve."""
    run = finish(tiny_config(text_file, eval={"k": 1, "capacity": 0.5}, train={"eval_every": 3}), tmp_path)
    trained = load_trained(run, tmp_path)
    assert evaluate(trained.model, trained.task, 4, policy=RoutingPolicy(1, 0.5)).loss == summary(run)["val_loss"]
    assert summary(run)["dropped_fraction"] > 0
    curve = [record for record in run.routing() if not record.get("whole_split")]
    assert [64, 64] == [sum(record["tokens_per_expert"]) for record in curve]
    assert all(sum(record["kept_per_expert"]) < 64 for record in curve)


def test_a_finished_run_is_left_alone(finished: Run, tmp_path: Path) -> None:
    """Carrying it out again changes no file."""
    copy = Run(Path(shutil.copytree(finished.path, tmp_path / finished.id)))
    before, after = (
        {path: path.read_bytes() for path in run_one(copy, tmp_path).path.rglob("*") if path.is_file()}
        for _ in range(2)
    )
    assert before == after
    assert finished.status() == copy.status()


def test_a_run_says_where_it_was_made(finished: Run, text_file: Path) -> None:
    """meta.json: command line, versions, hardware, and the corpus by hash."""
    meta = finished.meta()
    assert torch.__version__ == meta["packages"]["torch"]
    assert (sys.argv, f"data.path={text_file}") == (meta["argv"], meta["corpus"]["source"])
    assert summary(finished)["corpus_sha256"] == meta["corpus"]["sha256"]


def test_a_restored_model_is_the_trained_one(finished: Run) -> None:
    """From the checkpoint, in evaluation mode, it has the loss of the summary."""
    trained = load_trained(finished, finished.path.parents[1])
    assert (6, False) == (trained.step, trained.model.training)
    assert summary(finished)["val_loss"] == evaluate(trained.model, trained.task, 4).loss


def test_train_refuses_what_is_no_setting(tmp_path: Path) -> None:
    """moe_cli.train(overrides) has the errors of the command."""
    with pytest.raises(ConfigError, match="Did you mean 'expert'"):
        moe_cli.train(["exprt=4"], outputs=tmp_path)


def interrupted(text: Path, outputs: Path) -> Run:
    """A run stopped after its second step."""

    def stop(view: Any) -> None:
        if view.state.step == 2:
            raise KeyboardInterrupt

    run = create_run(outputs, "runs", tiny_config(text, train={"checkpoint_every": 1}))
    with pytest.raises(KeyboardInterrupt):
        run_one(run, outputs, stop)
    return run


@pytest.mark.parametrize("use", [run_one, load_trained])
def test_changed_data_refuse_to_go_on(tmp_path: Path, use: Any) -> None:
    """A run does not go on, and no model is evaluated, on text that is not what it was trained on."""
    text = tmp_path / "text.txt"
    text.write_text(words(3000))
    run = interrupted(text, tmp_path)
    text.write_text(words(3000, seed=1))
    with pytest.raises(CheckpointError, match=rf"{run.id} was trained on other data: data\.path={text} has changed"):
        use(run, tmp_path)
    text.write_text(words(3000))
    use(run, tmp_path)


@pytest.mark.parametrize("change", [{"by_name": True}, {"val_tokens": 7}, {"test_tokens": 50}])
def test_another_split_of_the_same_text_is_refused(text_file: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    """A model may have learned from what would be held out now; what an old run does not say cannot be held against it."""
    run = finish(tiny_config(text_file, train={"steps": 1}), tmp_path)
    meta = run.meta()
    write_json(run.path / "meta.json", {**meta, "corpus": {**meta["corpus"], **change}})
    with pytest.raises(
        CheckpointError, match=r"another split of .*: it may have learned from the documents that are held out now"
    ):
        load_trained(run, tmp_path)
    old = {key: value for key, value in meta["corpus"].items() if key not in ("by_name", *SIZES)}
    write_json(run.path / "meta.json", {**meta, "corpus": old})
    load_trained(run, tmp_path)


def test_a_run_from_before_there_were_splits_by_name_is_not_judged_by_them(tmp_path: Path) -> None:
    """Its folder said nothing of splits then: all of it, the test file too, may have been learned from."""
    for name in ("train", "test"):
        (tmp_path / "text").mkdir(exist_ok=True)
        (tmp_path / "text" / f"{name}.txt").write_text(words(2000))
    run = finish(tiny_config(tmp_path / "text", train={"steps": 1}), tmp_path)
    load_trained(run, tmp_path, split="test")
    meta = run.meta()
    old = {key: value for key, value in meta["corpus"].items() if key not in ("by_name", *SIZES)}
    write_json(run.path / "meta.json", {**meta, "corpus": old})
    with pytest.raises(CheckpointError, match="another split"):
        load_trained(run, tmp_path, split="test")


def test_missing_data_are_a_clear_error(tmp_path: Path) -> None:
    """The reason stands in the folder."""
    run = create_run(tmp_path, "runs", tiny_config(tmp_path / "none.txt"))
    with pytest.raises(DataError, match="does not exist"):
        run_one(run, tmp_path)
    assert ("failed", True) == (run.status()["status"], "does not exist" in run.status()["reason"])


def test_a_failure_leaves_its_reason_and_traceback(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An error of the program is raised as it is, and recorded; the next attempt starts clean."""

    def broken(view: Any) -> None:
        raise ZeroDivisionError("first line\nsecond")

    run = create_run(tmp_path, "runs", tiny_config(text_file))
    with pytest.raises(ZeroDivisionError):
        run_one(run, tmp_path, broken)
    assert ("failed", None) == (run.status()["status"], run.summary())
    assert run.status()["reason"].startswith("ZeroDivisionError: first line")
    assert "in broken" in (run.path / "traceback.txt").read_text()
    reasons: list[Any] = []
    run_one(run, tmp_path, lambda view: reasons.append(run.status()["reason"]))
    assert 6 * [None] == reasons
    assert ("completed", None) == (run.status()["status"], run.status()["reason"])
    assert not (run.path / "traceback.txt").exists()


def test_a_disk_too_full_for_a_record_is_reported(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is interrupted, says what it still has, and goes on."""
    run = create_run(tmp_path, "runs", tiny_config(text_file, train={"checkpoint_every": 2}))

    def full(self: Recorder, *record: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    def fill(view: Any) -> None:
        if view.state.step == 3:
            monkeypatch.setattr(Recorder, "metrics", full)

    with pytest.raises(DiskFull, match=r"No space left on device. The checkpoint of step 2 is kept.\nFree space, then"):
        run_one(run, tmp_path, fill)
    assert "interrupted" == run.status()["status"]
    monkeypatch.undo()
    run_one(run, tmp_path)
    assert "completed" == run.status()["status"]


def test_a_disk_too_full_for_the_reason_does_not_hide_the_error(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first error is the one that is raised."""
    run = create_run(tmp_path, "runs", tiny_config(text_file))

    def fill(view: Any) -> None:
        def full(*arguments: Any, **options: Any) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "replace", full)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        run_one(run, tmp_path, fill)


def test_a_damaged_checkpoint_does_not_start_again(text_file: Path, tmp_path: Path) -> None:
    """Resuming says what is wrong, and after following the advice the run goes on from the checkpoint before."""
    run = interrupted(text_file, tmp_path)
    (run.checkpoints()[0] / "model.safetensors").write_bytes(b"")
    for call in (run_one, load_trained):
        with pytest.raises(CheckpointError, match="is damaged"):
            call(run, tmp_path)
    shutil.rmtree(run.checkpoints()[0])
    assert 6 == summary(run_one(run, tmp_path))["steps"]


def test_the_worker_says_with_its_exit_code_how_it_went(
    text_file: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 done, 1 with the reason on the error stream, 4 when another process writes, 130 stopped."""
    run = create_run(tmp_path, "runs", tiny_config(text_file, train={"steps": 1}))
    arguments = (str(run.path), str(tmp_path))
    with lock(run.path):
        assert EXIT_BUSY == 4 == main(*arguments)
    with monkeypatch.context() as patch:
        patch.setattr("moe_cli.training.trainer.Trainer.run", lambda self: False)
        assert EXIT_INTERRUPTED == 130 == main(*arguments)
    assert EXIT_OK == 0 == main(*arguments)
    assert EXIT_OK == main(*arguments)
    missing = create_run(tmp_path, "runs", tiny_config(tmp_path / "none.txt"))
    assert EXIT_FAILED == 1 == main(str(missing.path), str(tmp_path))
    assert "error: data.path=" in capsys.readouterr().err


@pytest.mark.slow
def test_the_worker_is_a_program(text_file: Path, tmp_path: Path) -> None:
    """python -m moe_cli.execution.worker RUN_FOLDER OUTPUTS trains, and prints nothing when all is well."""
    run = create_run(tmp_path, "runs", tiny_config(text_file, train={"steps": 1}))
    command = [sys.executable, "-m", "moe_cli.execution.worker", str(run.path), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (0, "", "") == (done.returncode, done.stdout, done.stderr)
    assert "completed" == json.loads((run.path / "summary.json").read_text())["status"]


def test_two_processes_do_not_train_one_run(text_file: Path, tmp_path: Path) -> None:
    """The second is refused, and the first's status is not touched."""
    run = create_run(tmp_path, "runs", tiny_config(text_file))
    with lock(run.path), pytest.raises(RunBusy):
        run_one(run, tmp_path)
    assert "pending" == run.status()["status"]


def test_a_run_that_another_process_completes_meanwhile_is_not_begun_again(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was waited for, for a moment, and is done: what it holds stays as it is."""
    run = create_run(tmp_path, "runs", tiny_config(text_file))

    @contextmanager
    def waited(path: Path) -> Iterator[None]:
        with lock(path):
            Recorder(run).complete({"val_bpb": 1.0})
            yield

    monkeypatch.setattr("moe_cli.runs.locks.lock", waited)
    with pytest.raises(RunBusy, match=f"another process has just completed {run.id}"):
        run_one(run, tmp_path)
    assert "starts" not in run.status()
    assert {"val_bpb": 1.0} == run.summary()


def test_threads_are_those_asked_for(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """train.threads, else OMP_NUM_THREADS, else one for every GFLOP of a batch, at most the cores, whatever the load."""
    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    assert 3 == pick_threads(tiny_config(text_file, train={"threads": 3}))
    free = tiny_config(text_file, train={"threads": None})
    assert 5 == pick_threads(free)
    monkeypatch.delenv("OMP_NUM_THREADS")
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr("moe_cli.execution.machine.busy_cores", lambda: 7.0)
    assert 1 == pick_threads(free)
    per_sequence = estimate_cost(free, 256).model_flops_per_token * free.model.context_length
    for gflops, threads in ((2.5, 3), (7.5, 8), (100, 8)):
        sequences = round(gflops * 1e9 / per_sequence)
        assert threads == pick_threads(tiny_config(text_file, train={"threads": None, "batch_size": sequences}))


@pytest.mark.parametrize(
    ("threads", "busy", "said"),
    [
        (2, 0.0, None),
        (1, 2.0, None),
        (2, 0.4, None),
        (3, 0.0, "3 threads share 2 cores. train.threads=1 is faster here; results differ in the last digits."),
        (2, 0.9, "0.9 of 2 cores are busy with other work. train.threads=1"),
        (2, 1.8, "both cores are busy with other work. train.threads=1"),
    ],
)
def test_a_crowd_is_said(threads: int, busy: float, said: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A warning says that threads and other work exceed the cores; fewer threads give none."""
    monkeypatch.setattr("moe_cli.execution.machine.busy_cores", lambda: busy)
    monkeypatch.setattr("moe_cli.execution.machine.count_cores", lambda: 2)
    warning = oversubscription_warning(threads)
    assert warning is None if said is None else (warning or "").startswith(said)


def test_a_device_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """cuda without a GPU is a MoeError; auto takes what there is."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert torch.device("cpu") == pick_device("auto") == pick_device("cpu")
    with pytest.raises(MoeError, match="sees no GPU"):
        pick_device("cuda:0")


def test_a_gpu_number_that_is_not_there_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error counts the GPUs there are."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert torch.device("cuda:1") == pick_device("cuda:1")
    with pytest.raises(MoeError, match="cuda:2: torch sees 2 GPUs, numbered from 0"):
        pick_device("cuda:2")


def test_a_seed_decides_data_and_noise_and_the_model_does_not(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Runs of one seed see the same windows in the same order, whatever their experts; another seed sees others."""
    seen: list[list[Any]] = []
    train_batch = TextTask.train_batch

    def watch(self: TextTask, index: int, size: int, *part: int) -> Any:
        batch = train_batch(self, index, size)
        seen[-1].append((index, batch.inputs.tolist(), torch.initial_seed()))
        return batch

    monkeypatch.setattr(TextTask, "train_batch", watch)
    for changes in ({"seed": 5}, {"seed": 5, "expert": 1, "k": 1}, {"seed": 6}):
        seen.append([])
        finish(tiny_config(text_file, **changes, train={"steps": 3}), tmp_path)
    first, dense, other = seen
    assert [(0, 5), (1, 5), (2, 5)] == [(index, noise) for index, _, noise in first]
    assert first == dense
    assert all(ours[1] != others[1] and others[2] == 6 for ours, others in zip(first, other, strict=True))


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("moe_cli.training.trainer.evaluate", "the validation loss is nan at step 3"),
        ("moe_cli.training.evaluate.evaluate", "the validation loss is nan at the end of training"),
    ],
)
def test_a_validation_loss_that_is_not_finite_fails(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, message: str
) -> None:
    """On the way and at the end it is an error with advice, and there is no summary."""
    run = create_run(tmp_path, "runs", tiny_config(text_file, train={"eval_every": 3}))
    monkeypatch.setattr(place, lambda *arguments, **options: Evaluation(math.nan, math.nan, 1, 1, ()))
    with pytest.raises(TrainingError, match=rf"{message}.*lower optim\.lr"):
        run_one(run, tmp_path)
    assert ("failed", None) == (run.status()["status"], run.summary())


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError(
            "[enforce fail at alloc_cpu.cpp:121] err == 0. DefaultCPUAllocator: can't allocate memory: 9 bytes."
        ),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB."),
    ],
    ids=lambda error: type(error).__name__,
)
def test_a_lack_of_memory_is_said_with_what_helps(text_file: Path, tmp_path: Path, error: Exception) -> None:
    """However Python and torch put it."""

    def exhaust(view: Any) -> None:
        raise error

    run = create_run(tmp_path, "runs", tiny_config(text_file))
    with pytest.raises(TrainingError, match=r"out of memory\. Lower train\.batch_size"):
        run_one(run, tmp_path, exhaust)
    assert ("failed", True) == (run.status()["status"], run.status()["reason"].startswith("out of memory."))


def test_torch_says_a_lack_of_memory_in_the_known_form(text_file: Path, tmp_path: Path) -> None:
    """torch's failure to allocate is reported as out of memory."""

    def exhaust(view: Any) -> None:
        torch.empty(10**15)

    with pytest.raises(TrainingError, match=r"^out of memory\."):
        run_one(create_run(tmp_path, "runs", tiny_config(text_file)), tmp_path, exhaust)


def test_gloo_says_a_lost_process_in_a_known_form(text_file: Path, tmp_path: Path, monkeypatch: Any) -> None:
    """The errors of torch.distributed are taken for a lost process, where there are several."""
    monkeypatch.setattr("moe_cli.execution.failures.is_distributed", lambda: True)
    run = Run(tmp_path / "run")
    source = "/__w/pytorch/pytorch/third_party/gloo/gloo/transport/tcp"
    for error in (
        RuntimeError(f"[{source}/pair.cc:553] Connection closed by peer [127.0.0.1]:17793. GLHF!"),
        RuntimeError(f"[{source}/unbound_buffer.cc:78] Timed out waiting 5000ms for recv operation to complete"),
        RuntimeError("Application timeout caused pair closure"),
        torch.distributed.DistBackendError("NCCL communicator was aborted on rank 0."),
        torch.distributed.DistNetworkError("Connection reset by peer"),
    ):
        assert isinstance(translate_exception(run, error), LostProcess)


TRIGGERS = ("Timed out", "out of memory", "can't allocate memory", "gloo", "NCCL", "Connection closed", "(os error 28)")


def test_a_message_decides_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An error keeps its own words, whatever a path or a value in its message happens to be called."""
    monkeypatch.setattr("moe_cli.execution.failures.is_distributed", lambda: True)
    kinds = [*MOE_ERRORS, ValueError, KeyError, FileNotFoundError, RuntimeError, Exception]
    messages = [
        form.format(words) for words in TRIGGERS for form in ("{}", "/data/{}/a.txt is empty.", "x={0}: no {0}")
    ]
    taken = [
        (kind, message)
        for kind in kinds
        for message in messages
        if translate_exception(Run(tmp_path / "run"), kind(message)) is not None
    ]
    assert [] == taken


def test_a_run_whose_reader_went_away_has_not_failed(text_file: Path, tmp_path: Path) -> None:
    """`moe train | head` ends the process by SystemExit; the run can be resumed like any that was stopped."""

    def leave(view: Any) -> None:
        raise SystemExit(1)

    run = create_run(tmp_path, "runs", tiny_config(text_file))
    with pytest.raises(SystemExit):
        run_one(run, tmp_path, leave)
    assert ("interrupted", "stopped at once") == (run.status()["status"], run.status()["reason"])
    assert not (run.path / "traceback.txt").exists()


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"model": {"d_expert": 12}}, "grouped_mm"),
        ({"model": {"d_expert": 13}, "train": {"batch_size": 4}}, "loop"),  # rows of 52 bytes
        ({"train": {"batch_size": 32, "precision": "bfloat16"}, "model": {"d_expert": 16}}, "grouped_mm"),
        ({"model": {"dispatch": "einsum"}}, "einsum"),
        ({"expert": 1, "k": 1}, None),
    ],
)
def test_the_back_end_is_named(
    text_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any], expected: str | None
) -> None:
    """The summary says what computed the experts, and it is what the layers took when training."""
    taken = set()
    for name, function in {name: dispatch.BACKENDS[name] for name in ("loop", "grouped_mm")}.items():

        def spy(*arguments: Any, name: str = name, function: Any = function) -> Any:
            if torch.is_grad_enabled():
                taken.add(name)
            return function(*arguments)

        monkeypatch.setitem(dispatch.BACKENDS, name, spy)
    train = {"steps": 2, **changes.get("train", {})}
    run = finish(tiny_config(text_file, **{**changes, "train": train}), tmp_path)
    assert summary(run)["dispatch"] == expected
    assert taken == ({expected} if expected in ("loop", "grouped_mm") else set())


def test_saturation_compares_like_with_like(text_file: Path, tmp_path: Path) -> None:
    """With eval.k the final choices are as many as those recorded: a router that learns nothing is settled."""
    still = MuonConfig(lr=1e-9, adam_lr=1e-9)
    config = tiny_config(text_file, optim=still, train={"eval_every": 2}, eval={"k": 1})
    assert summary(finish(config, tmp_path))["router_saturation"] == 1.0


def test_a_run_does_not_go_on_with_other_settings(text_file: Path, tmp_path: Path) -> None:
    """Resumed after its config.json was edited a run is refused, unless the edit is about how it is carried out."""
    train = {"steps": 4, "checkpoint_every": 2}
    run = finish(tiny_config(text_file, train=train), tmp_path, lambda view: signal.raise_signal(signal.SIGTERM))
    values = run.config_dict()
    write_json(run.path / "config.json", {**values, "optim": {**values["optim"], "lr": 0.5}})
    with pytest.raises(CheckpointError, match=r"was started with other settings .*: .*config.json has changed, "):
        run_one(run, tmp_path)
    write_json(run.path / "config.json", {**values, "train": {**values["train"], "log_every": 3}})
    assert run_one(run, tmp_path).summary()


TRAINED = [
    "expert=4",
    "k=1",
    "model.d_model=16",
    "model.num_layers=1",
    "model.num_heads=2",
    "model.context_length=16",
    "train.steps=2",
    "train.batch_size=2",
    "train.threads=1",
    "train.device=cpu",
]


@pytest.mark.slow
def test_train_is_public(
    tmp_path: Path,
    text_file: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """moe_cli.train(overrides) trains in the folder given or in MOE_OUTPUTS. With progress it prints what the command
    prints, without it nothing; results and notes are the same.

    Also where torch is loaded already, the training's own process sets how long threads spin before it loads torch.
    """
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    (tmp_path / "sitecustomize.py").write_text(
        "import atexit, os, sys\n"
        "atexit.register(lambda: open(os.environ['SAID'], 'a').write(os.environ.get('GOMP_SPINCOUNT', '-')))\n"
    )
    monkeypatch.setenv("SAID", str(tmp_path / "said"))
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.environ.get('PYTHONPATH', Path.cwd())}")
    monkeypatch.setenv("MOE_OUTPUTS", str(tmp_path / "variable"))
    assert "torch" in sys.modules
    words = ["data=text", f"data.path={text_file}", *TRAINED, "seed=1", "seed=0"]
    quiet = moe_cli.train(words, outputs=tmp_path / "given")
    assert ("", "") == tuple(capfd.readouterr())
    shown = moe_cli.train(words, progress=True)
    printed = capfd.readouterr().out
    assert all(part in printed for part in ("parameters", "step 1/2", "done in", "validation"))
    assert [tmp_path / "given" / "runs", tmp_path / "variable" / "runs"] == [quiet.path.parent, shown.path.parent]
    assert ["completed"] * 2 == [run.status()["status"] for run in (quiet, shown)]
    assert (4, 1, 2) == tuple(summary(quiet)[key] for key in ("expert", "k", "steps"))
    assert ["seed"] * 2 == [record.getMessage().split()[0] for record in caplog.records]
    results = [{name: summary(run)[name] for name in ("val_loss", "val_bpb", "train_loss")} for run in (quiet, shown)]
    assert results[0] == results[1]
    assert "10001000" == (tmp_path / "said").read_text()
    assert "GOMP_SPINCOUNT" not in os.environ


@pytest.mark.slow
@pytest.mark.parametrize("progress", [False, True])
def test_a_training_from_python_that_fails_says_why(tmp_path: Path, text_file: Path, progress: bool) -> None:
    """A failed training from Python raises the text that its process wrote, with and without progress."""
    words = ["data=text", f"data.path={text_file}", *TRAINED, "optim=sgd", "optim.lr=1e15"]
    with pytest.raises(TrainingError, match=r"is (nan|inf).*\n.*moe runs show"):
        moe_cli.train(words, outputs=tmp_path, progress=progress)


@pytest.mark.slow
def test_an_interrupted_training_from_python_is_saved(tmp_path: Path, text_file: Path) -> None:
    """Ctrl-C raises KeyboardInterrupt once the training's process has saved; the run goes on with --resume."""
    words = ["data=text", f"data.path={text_file}", *TRAINED, "train.steps=1000000", "train.checkpoint_every=5"]
    # A shell starts what it runs in the background with this signal ignored.
    code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import moe_cli; "
    code += f"moe_cli.train({words!r}, outputs={str(tmp_path)!r})"
    process = subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not (runs := list_runs_by_age(tmp_path)) or not runs[0].checkpoints():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    assert "KeyboardInterrupt" in process.communicate()[1]
    assert ("interrupted", f"stopped; {runs[0].kept()}") == (
        runs[0].status()["status"],
        runs[0].status()["reason"],
    )
