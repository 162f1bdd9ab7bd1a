"""Each chapter runs as a script, with warnings as errors, and has the parts that a chapter has."""

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
ALLOWED = {"minilora", "numpy", "matplotlib", *sys.stdlib_module_names}
DRAWS = {"plot", "loglog", "semilogx", "semilogy", "bar", "barh", "scatter", "imshow", "hist"}

pytest.importorskip("matplotlib")


ON_STRICT = """
import runpy, sys
import numpy, strict
import minilora as ml
ml.use(strict.StrictBackend())
numpy.seterr(all="ignore")  # CuPy never warns
runpy.run_path(sys.argv[1], run_name="__main__")
strict.LOG.no_wrapping()
assert len(strict.LOG.asked) > 100
"""


PLAIN = """
import runpy, sys
import minilora as ml
from minilora import ops
ml.use("numpy", plain=True)
def kernel(*arrays, **settings):
    raise AssertionError("a kernel ran")
for op in ml.kernels.TABLE:
    op.kernel = kernel
runpy.run_path(sys.argv[1], run_name="__main__")
"""


@pytest.fixture(autouse=True)
def backend():
    """A chapter runs in a process of its own: most tests of it do so once."""


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request) -> Path:
    return request.param


def prose(path: Path) -> str:
    """The text of the markdown cells."""
    cells = re.split(r"^# %%", path.read_text("utf-8"), flags=re.MULTILINE)
    texts = [cell.split("\n", 1)[1] for cell in cells if cell.startswith(" [markdown]")]
    return "\n".join(re.sub(r"^# ?", "", text, flags=re.MULTILINE) for text in texts)


def test_there_are_chapters():
    assert CHAPTERS


@pytest.mark.parametrize("run", ["", PLAIN, ON_STRICT], ids=["numpy", "plain", "strict"])
def test_it_runs_without_a_warning(chapter, run, tmp_path):
    own = {"MINILORA_FAST": "1", "MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1"}
    folders = str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")
    path = os.pathsep.join(filter(None, folders))
    done = subprocess.run(
        [sys.executable, "-W", "error", *(["-c", run] if run else []), str(chapter)],
        cwd=tmp_path, timeout=60,
        env={**os.environ, **own, "PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"},
        capture_output=True, text=True, encoding="utf-8", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert "Caught: " in done.stdout
    assert not list(tmp_path.iterdir())  # it leaves nothing behind


def test_it_has_the_parts_of_a_chapter(chapter):
    text = prose(chapter)
    assert re.match(rf"\n?# {chapter.stem[:2]}\. \w", text)
    assert text.count("**Predict.**") == 1
    answer = re.search(r"<details><summary>Answer</summary>\n\n(.+?)\n\n</details>", text, re.S)
    assert answer and answer.start() > text.index("**Predict.**")
    assert text.count("**Check.**") == 1
    assert text.count("\n## Break it\n") == 1
    assert "\n## What you built, and what is next\n" in text
    ending = text[text.index("\n## What you built") :]
    assert "**Next:**" in ending
    assert re.search(r"exercise \d\d", ending, re.I)


def test_check_and_break_it_are_followed_by_code(chapter):
    cells = chapter.read_text("utf-8").split("# %%")
    for mark, word in (("**Check.**", "assert"), ("## Break it", "Caught: ")):
        at = next(i for i, cell in enumerate(cells) if mark in cell)
        assert word in cells[at + 1]


def test_it_is_short_and_needs_nothing_else(chapter):
    source = chapter.read_text("utf-8")
    assert len(source.splitlines()) <= 250
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= ALLOWED


def test_its_own_figures_have_axis_labels(chapter):
    for cell in chapter.read_text("utf-8").split("# %%"):
        if re.search(rf"\bax\.({'|'.join(DRAWS)})\(", cell):
            assert "xlabel" in cell
            assert "ylabel" in cell


def test_formulas_are_closed_and_links_are_to_the_paper(chapter):
    text = prose(chapter)
    assert text.replace("$$", "").count("$") % 2 == 0
    assert text.count("$$") % 2 == 0
    assert all("arxiv.org" in link for link in re.findall(r"https?://[^\s)]+", text))
