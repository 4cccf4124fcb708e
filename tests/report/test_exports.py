"""A report as files: LaTeX for a paper, figures, and the texts that the terminal prints too."""

import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest

from moe_cli.report.render.latex import cell, escaped
from tests.report.folders import complete
from tests.report.html.pages import HOSTILE, report, sweep

PNG = b"\x89PNG\r\n\x1a\n"


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exports")
    sweep(folder, experts=(1, 4, 8))
    return folder


@pytest.mark.parametrize(("ending", "form"), [("csv", "csv"), ("md", "md"), ("json", "json"), ("tex", "latex")])
def test_a_file_holds_what_the_terminal_prints(outputs: Path, tmp_path: Path, ending: str, form: str) -> None:
    """-o FILE and --format give the same text; a file there before is replaced."""
    file = tmp_path / f"r.{ending}"
    file.write_text("old")
    result = report(outputs, "-o", file)
    assert (0, True) == (result.exit_code, str(file) in result.stdout)
    assert report(outputs, "--format", form).stdout.rstrip() == file.read_text().rstrip()


def test_latex_is_a_booktabs_table(outputs: Path) -> None:
    """As many cells in every row as columns, rules of booktabs, the best row bold, intervals behind +-, braces closed."""
    text = report(outputs, "--format", "latex").stdout
    columns = re.search(r"\\begin\{tabular\}\{@\{\}([lr]+)@\{\}\}", text)
    assert columns
    rows = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert 4 == len(rows)  # the headings and three configurations
    assert {len(columns[1])} == {len(re.split(r"(?<!\\)&", row)) for row in rows}
    assert ["\\toprule", "\\midrule", "\\bottomrule"] == re.findall(r"\\(?:top|mid|bottom)rule", text)
    assert [False, True, False, False] == [r"\textbf" in row for row in rows]
    assert r"\pm" in rows[1]
    assert r"\,\%" in rows[1]
    bare = re.sub(r"\\[{}]", "", text)
    depth = 0
    for character in bare:
        depth += (character == "{") - (character == "}")
        assert depth >= 0
    assert 0 == depth
    assert re.findall(r"\\begin\{(\w+)\}", text) == re.findall(r"\\end\{(\w+)\}", text)[::-1]


def test_latex_names_what_differences_are_taken_to(tmp_path: Path) -> None:
    """Without a baseline that is the lowest, as in the table of the terminal."""
    for seed in range(2):
        for balance, loss in (("none", 1.7), ("switch", 1.9)):
            complete(tmp_path, loss + 0.01 * seed * len(balance), "mine", balance=balance, seed=seed)
    for words in ((), ("--format", "latex")):
        assert "differences to the lowest are paired by seed" in report(tmp_path, *words).stdout


def test_latex_escapes_foreign_text() -> None:
    """Everything that TeX would act on is written out; numbers are numbers."""
    assert r"\textbackslash{}input\{a\}\_\$\&\#\%\textasciitilde{}\textasciicircum{}" == escaped("\\input{a}_$&#%~^")
    assert not re.search(r"(?<!\\)[$&#%_]", escaped(HOSTILE))
    assert [r"$-3.4 \pm 0.7$\,\%", "1.85", r"$-0.5$\,\%", "--", "better"] == [
        cell(text, False) for text in ("-3.4 % +- 0.7", "1.85", "-0.5 %", "-", "better")
    ]
    assert r"\boldmath\textbf{$1.861 \pm 0.021$}\unboldmath" == cell("1.861 +- 0.021", True)
    assert r"$-3.0 \pm {<}0.1$\,\%" == cell("-3.0 % +- <0.1", False)
    for hostile in ("1 +- \\input{a}", "\\input{a} +- 1", "\\input{a} %", "1 % \\input{a}"):
        assert not re.search(r"\\input|\$", cell(hostile, False)), hostile


def test_latex_is_as_wide_as_a_page(outputs: Path) -> None:
    """The least important columns are left out, and named in a comment; those asked for stay."""
    text = report(outputs, "--format", "latex").stdout
    missing = next(line for line in text.splitlines() if line.startswith("% left out: "))
    assert {"verdict", "FLOP/token"} <= set(missing.removeprefix("% left out: ").partition(";")[0].split(", "))
    assert "bits/byte & vs baseline & tok/s" in text
    names = "expert,k,params,active_params,flops_per_token,val_loss,val_bpb,vs_baseline,verdict,tokens_per_second"
    text = report(outputs, "--format", "latex", "--columns", names).stdout
    assert "left out" not in text
    assert "FLOP/token &" in text


@pytest.mark.slow
def test_latex_compiles(outputs: Path, tmp_path: Path) -> None:
    """With pdflatex and booktabs alone, without a warning of a line too wide; what is hostile is printed."""
    if shutil.which("pdflatex") is None or subprocess.run(["kpsewhich", "booktabs.sty"], check=False).returncode:
        pytest.skip("no pdflatex with booktabs on this machine")
    assert 0 == report(outputs, "-o", tmp_path / "r.tex").exit_code
    hostile = escaped(HOSTILE + '\\input{no-such-file} ^^M ~ | "')
    said = {}
    for name, content in (("table", "\\input{r}"), ("text", hostile)):
        document = (
            f"\\documentclass{{article}}\\usepackage{{booktabs}}\\begin{{document}}\n{content}\n\\end{{document}}\n"
        )
        (tmp_path / f"{name}.tex").write_text(document)
        words = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", f"{name}.tex"]
        done = subprocess.run(words, cwd=tmp_path, capture_output=True, text=True, errors="replace", check=False)
        assert 0 == done.returncode, done.stdout[-2000:]
        said[name] = done.stdout
    assert "Overfull" not in said["table"]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_figures_show_every_configuration(outputs: Path, tmp_path: Path, ending: str) -> None:
    """Three charts with their axes named, and the configurations by name; twice the same file."""
    pytest.importorskip("matplotlib")
    file = tmp_path / f"r.{ending}"
    assert 0 == report(outputs, "-o", file).exit_code
    content = file.read_bytes()
    if ending == "png":
        assert content.startswith(PNG)
        return
    text = "".join(ET.fromstring(content).itertext())
    for words in (
        "sparsity, 1 - k / experts",
        "training FLOP per token",
        "training tokens",
        "expert=8",
        "expert=1 (dense)",
    ):
        assert words in text
    report(outputs, "-o", file)
    assert content == file.read_bytes()


@pytest.mark.parametrize("factor", [2, 300])
def test_ticks_of_a_logarithmic_axis_are_counts(tmp_path: Path, factor: int) -> None:
    """Ticks are 4M or 1G, within a power of ten and over several; no tick is the source text of a formula."""
    pytest.importorskip("matplotlib")
    for expert, flops in ((1, 4e6), (8, factor * 4e6)):
        complete(tmp_path / "o", 1.7, "s", {"flops_per_token": flops}, expert=expert)
    assert 0 == report(tmp_path / "o", "-o", tmp_path / "r.svg").exit_code
    text = "".join(ET.fromstring((tmp_path / "r.svg").read_bytes()).itertext())
    assert "mathdefault" not in text
    assert "10M" in text or "6M" in text


def test_hostile_names_are_drawn_as_text(tmp_path: Path) -> None:
    """Dollar signs are no mathematics, brackets no markup."""
    pytest.importorskip("matplotlib")
    complete(tmp_path / "o", 1.9, "a$b$<svg>", expert=1)
    complete(tmp_path / "o", 1.8, "a$b$<svg>", expert=4, k=2)
    assert 0 == report(tmp_path / "o", "-o", tmp_path / "r.svg").exit_code
    assert "a$b$<svg>" in "".join(ET.fromstring((tmp_path / "r.svg").read_bytes()).itertext())


def test_several_files_at_once(outputs: Path, tmp_path: Path) -> None:
    """Each by its ending, capitals too; the page among them."""
    names = ("r.csv", "r.MD", "r.html")
    words: list[Any] = [word for name in names for word in ("-o", tmp_path / name)]
    assert 0 == report(outputs, *words).exit_code
    assert all((tmp_path / name).stat().st_size > 100 for name in names)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-o", "r.xlsx"], "the ending says what to write. It can be .html, .csv"),
        (["-o", "r"], "the ending says what to write"),
        (["-o", "a.csv", "-o", "a.csv"], "a file is named twice"),
        (["-o", "no/such/a.csv"], "no folder no/such"),
        (["-o", "a.csv", "--format", "json"], "give one of them"),
        (["-o", "a.csv", "--plot", "val_bpb:expert"], "give one of them"),
    ],
)
def test_what_is_refused(
    outputs: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], message: str
) -> None:
    """With exit code 2, and nothing is written."""
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    result = report(outputs, *words)
    assert (2, True) == (result.exit_code, message in " ".join(result.stderr.split())), result.stderr
    assert before == sorted(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("module", "file", "extra"),
    [("matplotlib", "r.png", "plots"), ("matplotlib", "r.svg", "plots")],
)
def test_a_library_that_is_not_there(
    outputs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str, file: str, extra: str
) -> None:
    """The error says what to install, and no file is left."""
    for name in [name for name in sys.modules if name == module or name.startswith(f"{module}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, module, None)
    result = report(outputs, "-o", tmp_path / file)
    assert (2, True) == (result.exit_code, f"pip install 'moe-cli[{extra}]'" in result.stderr)
    assert not (tmp_path / file).exists()


def test_a_disk_that_cannot_be_written(outputs: Path, tmp_path: Path) -> None:
    """An error in one line, and the old file as it was."""
    result = report(outputs, "-o", "/proc/r.csv")
    assert (True, True) == (result.exit_code in (1, 2), "cannot write" in result.stderr)
    assert "Traceback" not in result.output
