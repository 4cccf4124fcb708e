"""moe runs experts --study: routes text through a model and shows what its experts specialise in."""

import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from moe_cli import __version__
from moe_cli.cli.console import CommandConsole, print_fitted
from moe_cli.cli.echo import ascii_only
from moe_cli.cli.evaluate import SPLITS, data_settings, one_policy
from moe_cli.cli.options import print_json, print_notes, print_written
from moe_cli.config.build import check_choice
from moe_cli.config.routers import SoftConfig
from moe_cli.errors import ConfigError
from moe_cli.report.export import check_files
from moe_cli.report.html.routing_study_page import routing_study_page
from moe_cli.report.render.routing_study import routing_study_lines
from moe_cli.report.report_file import write_file

if TYPE_CHECKING:
    from moe_cli.config.schema import RunConfig
    from moe_cli.execution.trained_model import TrainedModel
    from moe_cli.moe.routing_study import RoutingStudy
    from moe_cli.runs.folder import Run
    from moe_cli.training.routing_study import Earlier

COMMAND = "moe runs experts"
SETTINGS = ("k", "capacity", "drop", "context_length")


@dataclass(frozen=True)
class StudyRequest:
    """The options of a study; `layer` counts from 1, and `earlier` are names with commas between them."""

    overrides: tuple[str, ...]
    layer: int | None
    earlier: str | None
    checkpoint: str
    split: str
    max_tokens: int | None


def print_study(run: "Run", outputs: Path, request: StudyRequest, page: Path | None, as_json: bool) -> None:
    """Prints the study of a run, or writes its page. Raises ConfigError as `study_run`."""
    if page and as_json:
        raise ConfigError("--json prints, --output writes a page: give one of them.")
    if page:
        check_files([page], (".html",), COMMAND)
    study = study_run(run, outputs, request)
    if as_json:
        print_json(asdict(study))
    elif page:
        _write(study, page.expanduser())
    else:
        print_fitted(lambda width: routing_study_lines(study, request.layer, width, ascii_only()))


def study_run(run: "Run", outputs: Path, request: StudyRequest) -> "RoutingStudy":
    """Returns the study of a run's routing.

    Raises ConfigError: the model is dense or uses all experts, a setting is wrong, or an earlier model differs.
    """
    check_choice("--split", request.split, list(SPLITS))
    config = run.config()
    _check(run.id, config, request.layer)
    data, others = data_settings(list(request.overrides), f"{COMMAND} --study")
    policy = one_policy(config, others, f"{COMMAND} --study", SETTINGS, stride=None)

    from moe_cli.data.corpora import Corpus
    from moe_cli.execution.trained_model import load_trained
    from moe_cli.tasks.registry import make_task
    from moe_cli.training.evaluate import eval_policy
    from moe_cli.training.routing_study import study_routing

    with CommandConsole(stderr=True).status("load") as status:
        loaded = load_trained(run, outputs, request.checkpoint, SPLITS[request.split], data=data)
        trained = replace(loaded, config=replace(loaded.config, eval=policy))
        trained = replace(trained, task=make_task(trained.config, loaded.task.dataset))
        if request.split == "validation" and isinstance(dataset := loaded.task.dataset, Corpus):
            print_notes(tuple(dataset.domains_without_validation()))
        names = [name.strip() for name in (request.earlier or "").split(",") if name.strip()]
        earlier = []
        for name in dict.fromkeys(names):
            status.update(f"choices of {name}")
            earlier.append(_earlier(run, outputs, name, trained, request, data))
        status.update("study")
        return study_routing(
            trained.model,
            trained.task,
            trained.config.train.batch_size,
            trained.config.eval_length,
            names={
                "run": run.id,
                "step": trained.step,
                "data": f"data={trained.config.data.name}",
                "split": request.split,
            },
            policy=eval_policy(policy),
            precision=trained.config.train.precision,
            max_tokens=request.max_tokens,
            earlier=earlier,
        )


def _check(run: str, config: "RunConfig", layer: int | None) -> None:
    """Raises ConfigError: the model has no choices to study, or the layer does not exist."""
    if config.dense:
        raise ConfigError(f"{run} is a dense model: it has no experts to look at.")
    if isinstance(config.router, SoftConfig):
        raise ConfigError(f"{run} has router=soft, in which every token uses all experts: nothing is chosen.")
    number = len(config.sparse_layers)
    if layer is not None and not 1 <= layer <= number:
        raise ConfigError(f"--layer {layer}: {run} has sparse layers 1 to {number}.")


def _earlier(
    run: "Run", outputs: Path, name: str, trained: "TrainedModel", request: StudyRequest, data: dict[str, Any]
) -> "Earlier":
    """Returns the choices of an earlier checkpoint: a step of this run, or another run.

    Raises ConfigError: its tokens or the shape of its routing differ.
    """
    from moe_cli.execution.trained_model import load_trained
    from moe_cli.runs.lookup import find_run
    from moe_cli.training.evaluate import eval_policy
    from moe_cli.training.routing_study import Earlier, saturation_choices

    is_step = name.isdecimal() or name == "best"
    other = run if is_step else find_run(outputs, name)
    loaded = load_trained(other, outputs, name if is_step else "latest", SPLITS[request.split], data=data)
    config, theirs = trained.config, loaded.config
    if _tokens(loaded) != _tokens(trained):
        raise ConfigError(
            f"--earlier {name}: it reads other tokens than {run.id}. Give both the same text, such as data=text "
            "data.path=FOLDER, and compare models of one tokenizer."
        )
    shapes = {(len(one.sparse_layers), one.expert, one.model.name) for one in (config, theirs)}
    if theirs.dense or len(shapes) > 1:
        raise ConfigError(
            f"--earlier {name}: it has {len(theirs.sparse_layers)} sparse layers of {theirs.expert} experts, and "
            f"{run.id} has {len(config.sparse_layers)} of {config.expert}."
        )
    policy = eval_policy(config.eval)
    return Earlier(name, saturation_choices(loaded.model, trained.task, policy, config.train.precision))


def _tokens(trained: "TrainedModel") -> tuple[Any, ...]:
    """Returns what identifies the tokens that a model reads."""
    meta = trained.task.dataset.meta
    return tuple(meta.get(key) for key in ("sha256", "tokenizer_sha256", "vocab_size", "val_tokens", "test_tokens"))


def _write(study: "RoutingStudy", path: Path) -> None:
    """Writes the page atomically."""
    program = f"moe {__version__}"
    made = f"made by {program}, {time.strftime('%Y-%m-%d %H:%M', time.gmtime())} UTC"
    write_file(path, routing_study_page(study, made, program))
    print_written([path])
