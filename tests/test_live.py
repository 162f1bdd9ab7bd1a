"""The page "Try it": its wheel, its cells, and Python in a browser, by Node and in a Chromium.

Both need MINILORA_PYODIDE: a folder with a whole Pyodide. .ci/run says where it has one from.
"""

import base64
import functools
import hashlib
import http.server
import importlib
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import zipfile
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path

import pytest
from conftest import BUILDS, builds, kept
from test_site import CHROMIUM, CUT, REPORT, browser

from minilora import cli, site
from minilora.exercises import book
from minilora.site import cells, contents, cover, execution, publish, pyodide, report, wheel

pytestmark = pytest.mark.usefixtures("numpy_only")
FOLDER = Path(os.environ.get("MINILORA_PYODIDE", "")).resolve()
NODE = shutil.which("node")
HAS = "MINILORA_PYODIDE" in os.environ
needs_pyodide = pytest.mark.skipif(not HAS, reason="needs MINILORA_PYODIDE, a folder of Pyodide")
COVER = {
    "pictures": {}, "shape": (4, 3), "losses": [4.0] * 4, "left": [0.5] * 4, "before": 5.0,
    "after": 3.0, "matrix": "W", "stronger": 2.0, "steps": 1, "drawn": 40,
}
SOLVED = book.exercise("02").solution()
WRONG = SOLVED.replace("stretched, keepdims", "stretched[:0], keepdims")


# The wheel.


@pytest.fixture(scope="module")
def own():
    return wheel.wheel()


def test_a_wheel_has_every_file_with_its_digest(own):
    name, data = own
    assert re.fullmatch(r"minilora-[\w.]+-py3-none-any\.whl", name)
    with zipfile.ZipFile(BytesIO(data)) as archive:
        files = {entry: archive.read(entry) for entry in archive.namelist()}
    about = next(entry for entry in files if entry.endswith("RECORD")).rpartition("/")[0]
    rows = files.pop(f"{about}/RECORD").decode().splitlines()
    assert rows.pop() == f"{about}/RECORD,,"
    for row, (entry, content) in zip(rows, files.items(), strict=True):
        digest = base64.urlsafe_b64encode(hashlib.sha256(content).digest()).decode().rstrip("=")
        assert row == f"{entry},sha256={digest},{len(content)}"
    for path in contents.PACKAGE.rglob("*.py"):
        inside = f"minilora/{path.relative_to(contents.PACKAGE).as_posix()}"
        assert files[inside] == path.read_bytes()
    for chapter in site.chapters():
        assert files[f"minilora/tutorials/{chapter.path.name}"].decode() == chapter.source
    assert b"MIT License" in files[f"{about}/licenses/LICENSE"]
    assert not [entry for entry in files if "__pycache__" in entry or entry.endswith(".pyc")]


def test_the_same_code_gives_the_same_wheel(own):
    assert wheel.wheel() == own


def test_the_package_runs_from_its_wheel(own, tmp_path):
    with zipfile.ZipFile(BytesIO(own[1])) as archive:
        archive.extractall(tmp_path)
    code = "import minilora, minilora.site as s; print(minilora.__file__, len(s.chapters()))"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True,
                          check=True, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)})
    where, count = done.stdout.split()
    assert Path(where).is_relative_to(tmp_path) and int(count) == len(site.chapters())


# Pyodide.


def a_pyodide(place, **packages):
    lock = {"packages": {name: {"file_name": f"{name}.whl", "depends": needs}
                         for name, needs in packages.items()}}
    files = {"pyodide.mjs": "1", "pyodide.asm.wasm": "2", "python_stdlib.zip": "3",
             "pyodide-lock.json": json.dumps(lock), "README.md": "no", "pyodide.asm.js.map": "no"}
    for name, text in {**files, **{f"{name}.whl": name for name in packages}}.items():
        (place / name).write_text(text)
    return place


def test_a_folder_of_pyodide_is_copied_as_far_as_the_page_needs_it(tmp_path):
    a_pyodide(tmp_path, numpy=[], pandas=["numpy"], matplotlib=["pillow", "numpy"], pillow=[])
    address, files = pyodide.at(str(tmp_path))
    assert address == "pyodide/"
    assert {name.removeprefix("pyodide/") for name in files} == {
        "pyodide.mjs", "pyodide.asm.wasm", "python_stdlib.zip", "pyodide-lock.json", "numpy.whl",
        "matplotlib.whl", "pillow.whl"}
    (tmp_path / "matplotlib.whl").unlink()  # the page runs without figures
    assert "pyodide/matplotlib.whl" not in pyodide.at(str(tmp_path))[1]


def test_an_address_needs_no_file():
    for address in ("https://a.example/pyodide", "http://a.example/pyodide/"):
        pyodide.check(address)
        assert pyodide.at(address) == (address.rstrip("/") + "/", {})


@pytest.mark.parametrize(("gone", "named"), [
    ("pyodide.mjs", "pyodide.mjs"), ("numpy.whl", "numpy.whl"),
    ("pyodide.asm.wasm", "pyodide.asm.wasm"), ("", "pyodide-lock.json with NumPy"),
    ("pyodide-lock.json", "pyodide-lock.json with NumPy"),
])
def test_a_folder_that_lacks_something_is_refused_before_any_work(
        gone, named, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "some"
    folder.mkdir()
    a_pyodide(folder, **({"numpy": []} if gone else {"pandas": []}))
    (folder / gone).unlink() if gone else None
    monkeypatch.setattr(publish, "need", lambda *names: None)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tutorials", "build", "--live", "some"]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"minilora: --live some: this folder has no {named}"), error
    assert "or the address of one, which begins with https://" in error
    assert [path.name for path in tmp_path.iterdir()] == ["some"]


# The cells.


@pytest.fixture
def page(monkeypatch):
    for name in ("MINILORA_FAST", "MPLBACKEND"):
        monkeypatch.setenv(name, os.environ.get(name, ""))  # put back after the test
    return cells.Cells()


def run(page, code):
    said = []
    error = page.run(code, "cell 1", said.append)
    return "".join(said), error


def test_a_cell_prints_and_shows_its_last_value_and_cells_share_variables(page, capsys):
    assert run(page, "a = 3\nprint('x', end='')\na + 1") == ("x4\n", "")
    assert run(page, "a\nNone") == ("", "")
    assert run(page, "def f():\n    print(a)\nf()") == ("3\n", "")
    assert run(page, "") == ("", "") and run(page, "'text'") == ("text\n", "")
    assert run(page, "import sys; print('e', file=sys.stderr)") == ("e\n", "")
    assert os.environ["MINILORA_FAST"] == "1" and capsys.readouterr() == ("", "")


def test_lines_are_said_as_they_come(page):
    said = []
    page.run("for i in range(3):\n    print(i, i)", "cell 1", said.append)
    assert said == ["0 0\n", "1 1\n", "2 2\n"]


@pytest.mark.parametrize(("code", "error"), [
    ("x = (1", """\
  File "cell 1", line 1
    x = (1
        ^
SyntaxError: '(' was never closed"""),
    ("def f():\n    return 1 / 0\n\nf()", """\
Traceback (most recent call last):
  File "cell 1", line 4, in <module>
    f()
  File "cell 1", line 2, in f
    return 1 / 0
           ~~^~~
ZeroDivisionError: division by zero"""),
    ("raise SystemExit(2)", """\
Traceback (most recent call last):
  File "cell 1", line 1, in <module>
    raise SystemExit(2)
SystemExit: 2"""),
])
def test_an_error_is_shown_as_python_does_from_the_cell_on(code, error, page):
    assert run(page, "1") and run(page, code) == ("", error)


def test_output_without_end_is_an_error(page):
    said, error = run(page, "while True:\n    print('x' * 9)")
    assert said == ("x" * 9 + "\n") * (cells.MOST // 10)
    assert error.endswith("this cell has printed more than 20,000 letters: print less")
    assert "site" not in error and run(page, "print(1)") == ("1\n", "")


def test_figures_are_taken_once(page):
    plt = pytest.importorskip("matplotlib.pyplot")
    plt.close("all")
    assert cells.figures() == []
    run(page, "from minilora import viz\nviz.loss_curves({'a': [3.0, 2.0]}, title='Down')")
    ((png, alt, width),) = cells.figures()
    assert base64.b64decode(png).startswith(b"\x89PNG") and alt.startswith("Down") and width > 100
    assert cells.figures() == []


def test_a_check_gives_the_verdict_and_a_solution_only_if_passed(page):
    verdict, solution = page.check("02", SOLVED)
    assert verdict.startswith("02 un-broadcast: 10 of 10 points") and "def unbroadcast" in solution
    assert solution.startswith("import numpy as np") and "NumPy broadcasts" not in solution
    verdict, solution = page.check("02", WRONG)
    assert "✗" in verdict and "the smallest case that fails" in verdict and not solution


# The page.


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """A site of chapter 00, whose cells have not run, with the page."""
    if not BUILDS:
        pytest.skip("needs pip install '.[tutorials]'")
    place = tmp_path_factory.mktemp("live")
    folder = place / "pyodide"
    folder.mkdir()
    chapters = site.chapters()[:1]
    with pytest.MonkeyPatch.context() as patch:
        books = [contents.notebook(chapter.source) for chapter in chapters]
        patch.setattr(execution, "executed", lambda chapters, say: books)
        patch.setattr(cover, "cover", lambda say: COVER)
        patch.setattr(report, "report", lambda say: REPORT)
        at = str(FOLDER if HAS else a_pyodide(folder, numpy=[]))
        site.build(place / "out", lambda line: None, chapters, at)
    return place / "out"


def test_the_page_has_every_cell_of_the_chapter_and_the_stubs(built):
    import html

    text = (built / "try.html").read_text("utf-8")
    areas = re.findall(r"<textarea [^>]*>\n(.*?)</textarea>", text, re.DOTALL)
    codes = [html.unescape(area) for area in areas]
    cells_ = [cell.source for cell in contents.notebook(site.chapters()[0].source).cells
              if cell.cell_type == "code"]
    assert codes[: len(cells_)] == cells_
    assert codes[len(cells_) :] == [cells.without_statement(book.exercise(n).stub())
                                    for n in ("02", "06")]
    assert all(code.startswith("import numpy as np\n") for code in codes[len(cells_) :])
    assert "BEGIN SOLUTION" not in text and "g.sum(axis=stretched" not in text
    assert "python tutorials/" not in text
    name, check = re.search(r'data-wheel="(get/minilora-.*?\.whl)\?(\w+)"', text).groups()
    assert (built / name).is_file() and len(check) == 8
    pages = {path.name: path.read_text("utf-8") for path in built.glob("*.html")}
    assert all('href="try.html"' in page for page in pages.values())
    assert 'href="try.html#exercise-02"' in pages["exercises.html"]
    assert "try.html" not in (built / "search.js").read_text("utf-8")


@builds
def test_without_live_no_page_names_it(built, tmp_path, monkeypatch):
    monkeypatch.setattr(execution, "executed", lambda chapters, say: [])
    monkeypatch.setattr(cover, "cover", lambda say: COVER)
    monkeypatch.setattr(report, "report", lambda say: REPORT)
    site.build(tmp_path / "out", lambda line: None, [])
    files = [*(tmp_path / "out").rglob("*.*")]
    assert not [path for path in files if path.name.startswith("try") or path.suffix == ".whl"]
    assert not [path for path in files if path.suffix == ".html" and "try.html" in path.read_text()]


# Python in a browser.


@needs_pyodide
@pytest.mark.skipif(NODE is None, reason="needs node")
def test_what_runs_in_a_browsers_python_and_what_is_refused_there(own, tmp_path):
    (tmp_path / own[0]).write_bytes(own[1])
    here = Path(__file__).parent
    done = subprocess.run(
        [NODE, here / "live.mjs", FOLDER, tmp_path / own[0], here / "in_browser.py"],
        capture_output=True, text=True, check=False)
    assert done.returncode == 0 and done.stdout.endswith("all of it ran\n"), done.stderr


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *args):
        """Print nothing."""

    def copyfile(self, source, target):
        """A page that is closed, or a worker that is ended, asks for no more."""
        try:
            super().copyfile(source, target)
        except ConnectionError:
            self.close_connection = True


@pytest.fixture(scope="module")
def served(built):
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), functools.partial(Quiet, directory=str(built)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


@pytest.fixture(scope="module")
def chromium(served):
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        sandbox = ["--no-sandbox"] if os.name == "posix" and os.getuid() == 0 else []
        yield (started := play.chromium.launch(executable_path=CHROMIUM, args=sandbox))
        started.close()


class Tab:
    """The page in a browser."""

    def __init__(self, page):
        self.page = page

    def says(self, words):
        self.page.wait_for_function(
            "words => document.querySelector('#status').textContent.includes(words)", arg=words,
            timeout=300_000)

    def press(self, name, exact=True):
        self.page.get_by_role("button", name=name, exact=exact).click()

    def write(self, name, code):
        self.page.locator(f"#{name}").fill(code)

    def result(self, name):
        return self.page.locator(f"[data-name='{name}'] .result").inner_text()


@pytest.fixture
def tab(chromium, served):
    """tab(width=..., scheme=...) opens the page; the browser must report no errors."""
    opened, complaints = [], []

    def open_(width=1280, scheme="light", address="", **settings):
        context = chromium.new_context(color_scheme=scheme, **settings)
        opened.append(context)
        context.on("console", lambda line: complaints.append(line.text))
        context.on("weberror", lambda error: complaints.append(str(error.error)))
        context.on("request", lambda request: request.url.startswith((served, "data:", "file:"))
                or complaints.append(f"{request.url} is request for"))
        page = context.new_page()
        page.set_viewport_size({"width": width, "height": 900})
        page.goto(address or f"{served}/try.html")
        return Tab(page)

    yield open_
    for context in opened:
        context.close()
    assert not [line for line in complaints if "404" not in line]  # one test asks for it


def marked(test):
    """Mark a test that runs Python in a browser."""
    for mark in browser:
        test = mark(test)
    return needs_pyodide(test)


@marked
def test_cells_run_in_order_and_show_text_errors_and_figures(tab):
    one = tab()
    assert one.page.locator("#status").inner_text().startswith("Loading Python")
    one.press("Run cell 2")
    one.says("Cell 2 has run")  # after cell 1
    assert one.result("cell 2").startswith("GPT2") and one.result("cell 1") == ""
    one.write("cell-3", "viz.loss_curves({'a': [2.0, 1.0]}, title='Mine')\nviz.show()")
    one.press("Run cell 3")
    one.says("Cell 3 has run")
    assert one.page.locator("[data-name='cell 3'] img").get_attribute("alt").startswith("Mine")
    one.write("cell-4", "def f():\n    return base[0]\nf()")
    one.press("Run cell 6")
    one.says("Cell 4 ended with an error")  # and no cell after it runs
    assert one.result("cell 4").startswith("Traceback") and "line 2, in f" in one.result("cell 4")
    assert one.result("cell 5") == one.result("cell 6") == ""
    one.write("cell-1", "x = (1")
    one.page.locator("#cell-1").press("Control+Enter")
    one.says("Cell 1 ended with an error")
    assert one.result("cell 1").endswith("SyntaxError: '(' was never closed")


@marked
def test_stop_ends_a_loop_that_never_ends_and_reset_gives_all_code_back(tab):
    one = tab()
    before = one.page.locator("#cell-1").input_value()
    one.says("Python is ready")
    one.press("Stop")
    one.says("Nothing is running.")
    one.write("cell-1", "x = 1\nwhile True:\n    pass")
    one.press("Run cell 1")
    one.says("Running cell 1")
    one.press("Check exercise 02")
    one.says("Cell 1 comes first: wait until it ends, or press Stop.")
    one.press("Stop")
    one.says("Stopped. Python starts again, without the variables of the cells. ")
    assert one.result("cell 1") == "Stopped."
    one.says("Python is ready")
    one.write("cell-1", "print('x' in globals())")
    one.press("Run cell 1")
    one.says("Cell 1 has run")
    assert one.result("cell 1").strip() == "False"
    one.press("Reset all")
    one.says("All code is as it was.")
    assert one.page.locator("#cell-1").input_value() == before and not one.result("cell 1")


@marked
def test_exercises_are_checked_kept_and_reset(tab):
    one = tab()
    stub = one.page.locator("#code-02").input_value()
    one.press("Check exercise 02")
    one.says("Exercise 02 was checked")
    assert "unbroadcast is not written yet" in one.result("exercise 02")
    one.write("code-02", WRONG)
    one.press("Check exercise 02")
    one.page.wait_for_function("!document.querySelector('#live').classList.contains('busy')")
    assert "the smallest case that fails:" in one.result("exercise 02")
    one.write("code-02", "def unbroadcast(g, shape):\n    while True:\n        pass\n")
    one.press("Check exercise 02")
    one.says("Checking exercise 02")
    one.press("Stop")
    one.says("Stopped.")
    one.write("code-02", SOLVED)
    one.press("Check exercise 02")
    one.says("Exercise 02 was checked")
    assert "10 of 10 points" in one.result("exercise 02")
    assert "A solution, to compare yours with:" in one.result("exercise 02")
    one.page.reload()
    assert one.page.locator("#code-02").input_value() == SOLVED
    one.press("Reset exercise 02")
    one.page.reload()
    assert one.page.locator("#code-02").input_value() == stub


@marked
def test_enter_keeps_the_indent(tab):
    one = tab()
    one.write("cell-1", "def f():")
    area = one.page.locator("#cell-1")
    area.press("End")
    for line in ("x = 1", "return x"):
        area.press("Enter")
        one.page.keyboard.type(line)
    assert area.input_value() == "def f():\n    x = 1\n    return x"


@marked
def test_what_cannot_be_loaded_is_said(tab, served):
    one = tab(address="about:blank")
    one.page.route("**/get/*.whl*", lambda route: route.fulfill(status=404))
    one.page.goto(f"{served}/try.html")
    one.says("Python could not be loaded (")
    one.says("404")
    one.page.unroute("**/get/*.whl*")
    one.press("Run cell 1")
    one.says("Cell 1 has run")


@marked
def test_a_page_from_a_file_says_what_to_do(tab, built):
    one = tab(address=(built / "try.html").as_uri())
    one.says("minilora tutorials serve")
    one.press("Run cell 1")
    one.says("A browser runs no Python on a page that is opened from a file.")


@marked
@pytest.mark.parametrize(("width", "scheme"), kept(
    [(390, "light"), (1280, "dark"), (390, "dark"), (1280, "light")], (390, "dark")))
def test_axe_finds_nothing_and_nothing_is_cut(width, scheme, tab):
    axe = Path(os.environ.get("AXE", "axe.min.js"))
    if not axe.is_file():
        pytest.skip("needs AXE=axe.min.js (npm pack axe-core)")
    one = tab(width, scheme, bypass_csp=True)
    one.press("Run cell 2")
    one.says("Cell 2 has run")
    one.write("cell-3", "1 / 0  # " + "a long line " * 20)
    one.press("Run cell 3")
    one.says("Cell 3 ended")
    one.write("code-02", SOLVED)
    one.press("Check exercise 02")
    one.says("Exercise 02 was checked")
    assert one.page.evaluate("document.documentElement.scrollWidth") <= width
    assert one.page.evaluate(CUT) == []
    for area in one.page.locator("textarea").all():
        assert area.evaluate("e => e.scrollHeight <= e.clientHeight + 1"), width
        assert area.evaluate("e => e.scrollWidth <= e.clientWidth + 1"), width
    one.page.evaluate(axe.read_text("utf-8"))
    violations = one.page.evaluate("axe.run(document, {preload: false})")["violations"]
    assert not [(v["id"], [node["target"] for node in v["nodes"]][:4]) for v in violations]


def test_no_widget_is_needed():
    """A notebook of a chapter needs no extension of Jupyter."""
    for chapter in site.chapters():
        assert "widget" not in chapter.source
    assert not find_spec("minilora.widgets")
    extras = Path(importlib.import_module("minilora").__file__).parents[1] / "pyproject.toml"
    assert not extras.exists() or "widgets" not in extras.read_text("utf-8")
