"""Completion: the words that it finds, and what a TAB does in real shells."""

import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from moe_cli.cli import shell_completion
from moe_cli.cli.completion import complete
from moe_cli.cli.shell_completion import bash_lines

ROOT = Path(__file__).parents[2]
# What is typed, and the words that complete it.
FOUND = {
    "tr": ["train"],
    "runs w": ["watch"],
    "train rou": ["router="],
    "train router=sw": ["router=switch"],
    "train model.d_m": ["model.d_model="],
    "train model.shared_gate=": ["model.shared_gate=false", "model.shared_gate=true"],
    "train task.mask_prob": [],
    "train task=masked_lm task.mask_p": ["task.mask_prob="],
    "train router=sigmoid router.sco": ["router.score="],
    "train experiment=published/m": ["experiment=published/mixtral_8x7b"],
    "train balance=switch+z": ["balance=switch+z"],
    "train log=tensorboard+w": ["log=tensorboard+wandb"],
    "train lr": ["optim.lr="],
    "train no": ["notes.txt"],
    "train mine/c": ["mine/c.yaml"],
    "train --like gpt-8": ["gpt-8x2-s0-1a2b3c4d"],
    "train --resume latest no": [],
    "config no": ["notes.txt"],
    "sweep mine/c": ["mine/c.yaml"],
    "eval latest no": [],
    "train data.path=no": ["data.path=notes.txt"],
    "train --dry-run mat": ["match="],
    "train --resume gpt-8": ["gpt-8x2-s0-1a2b3c4d"],
    "train --resume latest train.th": ["train.threads="],
    "train --resume latest exp": ["launch.expert_parallel_size="],
    "train executor": [],
    "train --outputs o": ["outputs/"],
    "plan --gpu h": ["h100", "h200"],
    "config match=act": ["match=active", "match=active+total+flops"],
    "config --config-dir mine router=o": ["router=own"],
    "bench step opti": ["optim.", "optim="],
    "sweep spars": ["sparsity"],
    "sweep sparsity spars": [],
    "sweep router=topk,sw": ["router=topk,switch"],
    "sweep executor=sl": ["executor=slurm"],
    "sweep preset=work": ["preset=workstation"],
    "sweep --sampler t": ["tpe"],
    "eval gpt-d": ["gpt-dense-s0-5e6f7a8b"],
    "eval latest eval.st": ["eval.stride="],
    "eval latest exp": [],
    "eval latest --split te": ["test"],
    "explain latest text eval.c": ["eval.capacity="],
    "sample lat": ["latest"],
    "sample latest --temp": ["--temperature"],
    "report my": ["my-sweep"],
    "report my-sweep --format la": ["latex"],
    "report --columns val_bpb,val_l": ["val_bpb,val_loss"],
    "recommend my": ["my-sweep"],
    "scaling --law c": ["clark"],
    "runs ls my": ["my-sweep"],
    "runs ls --status failed,int": ["failed,interrupted"],
    "runs ls --tag bas": ["baseline"],
    "runs tag latest bas": ["baseline"],
    "runs rm --sweep my": ["my-sweep"],
    "runs restore gpt-4": ["gpt-4x1-s0-99999999"],
    "runs diff latest gpt-8": ["gpt-8x2-s0-1a2b3c4d"],
    "runs show latest gpt": [],
    "runs show --out": ["--outputs"],
}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with a text, a conf/ folder, two runs with a tag, and a removed one."""
    (tmp_path / "notes.txt").write_text("text")
    (tmp_path / "mine/router").mkdir(parents=True)
    (tmp_path / "mine/c.yaml").write_text("expert: 8\n")
    (tmp_path / "mine/router/own.yaml").write_text("# mine\nname: topk\n")
    for place, name in (("runs", "gpt-8x2-s0-1a2b3c4d"), ("my-sweep", "gpt-dense-s0-5e6f7a8b")):
        run = tmp_path / "outputs" / place / name
        run.mkdir(parents=True)
        (run / "tags.json").write_text(json.dumps({"tags": ["baseline"]}))
    removed = tmp_path / "outputs/.trash/20260101-runs-gpt-4x1-s0-99999999"
    removed.mkdir(parents=True)
    (removed / "trashed.json").write_text(json.dumps({"from": "runs/gpt-4x1-s0-99999999"}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MOE_OUTPUTS", raising=False)
    return tmp_path


def test_words_that_are_found(folder: Path) -> None:
    """Every command completes its settings, choices, runs, sweeps, tags, files and options."""
    lines = {typed: typed.split(" ") for typed in FOUND}
    assert FOUND == {
        typed: sorted(each.text for each in complete(words[:-1], words[-1])) for typed, words in lines.items()
    }


def test_bash_gets_what_follows_its_word_breaks(folder: Path) -> None:
    """Bash replaces the text after the last = or :, a space ends a complete word, and signs in names are quoted."""
    (folder / "my notes.txt").write_text("text")
    assert ["switch "] == bash_lines("moe train router=sw", " =:")
    assert ["router=switch "] == bash_lines("moe train router=sw", " ")
    assert ["router="] == bash_lines("moe train rou", " =:")
    assert ["my\\ notes.txt "] == bash_lines("moe train data.path=my", " =:")
    assert ["my\\ notes.txt "] == bash_lines("moe train data.path=my\\ n", " =:")
    assert [] == bash_lines("moe train 'rou", " =:")
    assert "expert=" in bash_lines("moe train  ", " =:")


def test_hostile_names_are_left_out(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file whose name moves the cursor is no completion."""
    (folder / "notes\x1b[2J.txt").write_text("text")
    for shell in shell_completion.SHELLS:
        typed = ["moe train data.path=not"] if shell == "bash" else ["train", "data.path=not"]
        shell_completion.print_completions(shell, typed)
        printed = capsys.readouterr().out
        assert "notes.txt" in printed
        assert "\x1b" not in printed


def test_a_tab_is_light(folder: Path) -> None:
    """A completion imports neither Typer, Hydra, torch, yaml nor rich, which take longer than a user waits."""
    code = (
        "import sys; sys.argv = ['moe', 'moe train router=s']; from moe_cli.__main__ import main; main();"
        "heavy = {'typer', 'hydra', 'torch', 'yaml', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "_MOE_COMPLETE": "bash", "_MOE_BREAKS": "="}
    run = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert "sigmoid \nsinkhorn \nsoft \nswitch \n" == run.stdout, run.stderr
    assert (0, "") == (run.returncode, run.stderr)


# --- real shells

# The file in the home folder that sets the prompt of a shell, and its text.
PROMPTS = {
    "bash": (".bashrc", "PS1='ready> '\n"),
    "zsh": (".zshrc", "PS1='ready> '\n"),
    "fish": (".config/fish/config.fish", "function fish_prompt; echo -n 'ready> '; end\n"),
}


class Shell:
    """An interactive shell in a terminal of its own."""

    def __init__(self, name: str, folder: Path) -> None:
        file, text = PROMPTS[name]
        if not (folder / file).exists():
            (folder / file).parent.mkdir(parents=True, exist_ok=True)
            (folder / file).write_text(text)
        programs = folder / "bin"
        programs.mkdir(exist_ok=True)
        (programs / "moe").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m moe_cli "$@"\n')
        (programs / "moe").chmod(0o755)
        environment = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": str(folder),
            "PYTHONPATH": str(ROOT),
            "TERM": "xterm",
            "LANG": "C.UTF-8",
        }
        self.text = ""
        pid, self.terminal = pty.fork()
        if pid == 0:
            os.execvpe(name, [name, "-i"], environment)
        self.pid = pid

    def type(self, text: str) -> None:
        os.write(self.terminal, text.encode())

    def wait_for(self, pattern: str, seconds: float = 20) -> None:
        """Reads until the pattern occurs in what is shown, without the codes of the terminal; then forgets that."""
        end = time.monotonic() + seconds
        while not (match := re.search(pattern, self.text)):
            ready = select.select([self.terminal], [], [], max(0, end - time.monotonic()))[0]
            assert ready, f"{pattern!r} is not in:\n{self.text}"
            shown = os.read(self.terminal, 65536).decode(errors="replace")
            self.text += re.sub(r"\x1b(\[[0-9;?]*[a-zA-Z]|\][^\x07]*\x07|[()].|[=>])", "", shown)
        self.text = self.text[match.end() :]

    def line(self, typed: str, pattern: str) -> None:
        """Types at the prompt, and waits for the pattern."""
        self.wait_for("ready> ")
        self.type(typed)
        self.wait_for(pattern)

    def end(self) -> None:
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.terminal)


@pytest.mark.slow
@pytest.mark.parametrize("name", PROMPTS)
def test_tab_in_a_shell(name: str, folder: Path) -> None:
    """After `moe --install-completion` a TAB completes keys without a space, values, settings, and file names."""
    if shutil.which(name) is None:
        pytest.skip(f"no {name} here")
    first = Shell(name, folder)
    first.line("moe --install-completion\n", f"works in every {name}")
    first.end()
    shell = Shell(name, folder)
    for typed, words in (
        ("moe train rou\tX", "<moe><train><router=X>"),
        ("moe train router=sw\tX", "<moe><train><router=switch><X>"),
        ("moe train model.d_m\t64", "<moe><train><model.d_model=64>"),
        ("moe train lr\t1", "<moe><train><optim.lr=1>"),
        ("moe train experiment=pub\tmix\tX", "<moe><train><experiment=published/mixtral_8x7b><X>"),
        ("moe train data.path=not\tX", "<moe><train><data.path=notes.txt><X>"),
        ("moe sweep router=topk,sw\tX", "<moe><sweep><router=topk,switchX>"),
        ("moe runs show gpt-d\tX", "<moe><runs><show><gpt-dense-s0-5e6f7a8b><X>"),
    ):
        shell.line(f"{typed}\x01printf '<%s>' \x05\n", re.escape(words))
    shell.line("moe train router=s\t\t", "sinkhorn")
    shell.end()


def test_every_shell_has_a_script() -> None:
    """The scripts of the shells are files of the package."""
    for name in shell_completion.SHELLS:
        assert "moe" in shell_completion.script(name)
