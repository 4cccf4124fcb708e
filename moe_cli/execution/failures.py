"""Translates exceptions of Python and torch into errors that a user can act on, and records failures."""

import errno
import re
import traceback

from moe_cli.distributed.launch import is_distributed
from moe_cli.errors import DiskFull, LostProcess, MoeError, TrainingError
from moe_cli.files.writing import is_full, write_text
from moe_cli.plugins import blame
from moe_cli.runs.folder import FAILED, INTERRUPTED, Run
from moe_cli.runs.recorder import Recorder

# The file of a run folder with the traceback of its failure.
TRACEBACK = "traceback.txt"
# The beginnings of messages of torch's allocators and of gloo, which raise plain RuntimeErrors.
_NO_MEMORY = re.compile(
    r"\[enforce fail at alloc_cpu\.cpp:\d+\] .*DefaultCPUAllocator: can't allocate memory: "
    r"|CUDA error: (out of memory|CUBLAS_STATUS_ALLOC_FAILED)|MPS backend out of memory"
)
_GLOO = re.compile(r"\[\S*gloo/\S+:\d+\] |Gloo connectFullMesh failed|Application timeout caused pair closure$")


def translate_exception(run: Run, error: BaseException) -> TrainingError | None:
    """Returns an exception of Python or torch as a TrainingError; None for a MoeError and for unknown ones."""
    if isinstance(error, MoeError):
        return None
    known = _disk_full(run, error) or _out_of_memory(error) or _lost_process(run, error) or _not_compiled(error)
    return known or _of_plugin(run, error)


def _of_plugin(run: Run, error: BaseException) -> TrainingError | None:
    """Returns a short error for an exception in the code of a plug-in. The run folder has the whole traceback."""
    if not isinstance(error, Exception) or (sentence := blame(error)) is None:
        return None
    return TrainingError(f"{sentence}. The whole traceback: {run.path / TRACEBACK}")


def _disk_full(run: Run, error: BaseException) -> DiskFull | None:
    if not is_full(error):
        return None
    from moe_cli.training.checkpoint_writer import recovery_hint

    reason = error.strerror if isinstance(error, OSError) else str(error)
    return DiskFull(f"cannot write to {run.path}: {reason}. {recovery_hint(run, full=True)}")


def _out_of_memory(error: BaseException) -> TrainingError | None:
    """Returns a readable error if the memory was exhausted, by the type or the beginning of the message."""
    import torch

    typed = isinstance(error, MemoryError | torch.OutOfMemoryError)
    typed |= isinstance(error, OSError) and error.errno == errno.ENOMEM
    if typed or (_is_of_torch(error) and _NO_MEMORY.match(str(error))):
        return TrainingError("out of memory. Lower train.batch_size, model.context_length or the model's size.")
    return None


def _is_of_torch(error: BaseException) -> bool:
    """Returns whether torch may have raised the error. Its C++ code raises RuntimeError for most errors."""
    return type(error) is RuntimeError or type(error).__module__ == "torch"


def _not_compiled(error: BaseException) -> TrainingError | None:
    """Returns a short error for an exception of torch's compiler, such as a missing C++ compiler."""
    if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return None
    reason = str(error).strip().split("\n")[0]
    return TrainingError(f"torch cannot compile this model: {reason}\nGo without: train.compile=off")


def _lost_process(run: Run, error: BaseException) -> LostProcess | None:
    """Returns an error if an exception of gloo or NCCL means that another process has died."""
    if not is_distributed():
        return None
    from torch.distributed import DistError

    if isinstance(error, DistError) or (type(error) is RuntimeError and _GLOO.match(str(error))):
        return LostProcess(f"another process of this training is gone; {run.kept()}.\n{resume_hint(run)}")
    return None


def resume_hint(run: Run) -> str:
    return f"Continue it: moe train --resume {run.id}"


def record_failure(run: Run, recorder: Recorder, error: BaseException) -> None:
    """Writes the reason to the run folder. A full disk must not hide the error itself."""
    # rich raises SystemExit when the reader of a pipe has closed it, as in `moe train | head`.
    interrupted = isinstance(error, KeyboardInterrupt | SystemExit | LostProcess | DiskFull)
    reason = str(error).split("\n")[0] if isinstance(error, MoeError) else f"{type(error).__name__}: {error}"
    try:
        stopped = interrupted and not isinstance(error, MoeError)
        recorder.status(INTERRUPTED if interrupted else FAILED, reason="stopped at once" if stopped else reason)
        if not interrupted:
            write_text(run.path / TRACEBACK, "".join(traceback.format_exception(error)))
    except OSError:
        pass
