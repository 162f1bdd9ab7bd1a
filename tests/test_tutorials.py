"""Each chapter runs as a script, in four ways, and has all parts of a chapter."""

import ast
import importlib
import json
import os
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from conftest import kept

import minilora as ml

ROOT = Path(__file__).parent.parent
CHAPTERS = sorted((ROOT / "tutorials").glob("[0-9][0-9]_*.py"))
NUMBERS = [path.stem[:2] for path in CHAPTERS]
ALLOWED = {"minilora", "numpy", *sys.stdlib_module_names}
DRAWS = {"plot", "loglog", "semilogx", "semilogy", "bar", "barh", "scatter", "imshow", "hist"}
BY_HAND = "03"  # the chapter that introduces `fit`: earlier ones write their loops by hand
TWICE = ["script", "bare"]  # two runs on the same ops must print the same; bare: no matplotlib
LONGER = pytest.mark.thorough  # without matplotlib, on plain ops, on the imitation of CuPy
QUICK = [path for path in CHAPTERS if path.stem[:2] in ("01", "07")]
WAYS = ["script", *(pytest.param(way, marks=LONGER) for way in ("bare", "plain", "strict"))]
LEFT_OUT = "figure left out"
CLOCK = r"tokens/s|\d ?(ns|µs|ms|s|seconds?)\b"  # in a line with a measured time
SKIPPED = re.compile(rf"{CLOCK}|{LEFT_OUT}|^\(figure: ")

# Runs several chapters in one process, and prints a line of JSON for each.
RUN = """
import contextlib, functools, io, json, runpy, sys, traceback
import numpy
import minilora as ml
way, *paths = sys.argv[1:]
if way == "bare":  # without matplotlib
    sys.modules["matplotlib"] = None
if way == "plain":
    ml.use("numpy", plain=True)
    def refuse(kernel):
        @functools.wraps(kernel)
        def run(*arrays, **settings):
            if ml.current().name == "numpy":  # on shapes a step is counted as it runs by default
                raise AssertionError("a kernel ran")
            return kernel(*arrays, **settings)
        return run
    for op in ml.kernels.TABLE:
        op.kernel = refuse(op.kernel)
if way == "strict":
    import strict
    from minilora.backend import gpu
    gpu.LIBRARY = strict.StrictBackend  # what ml.use("cupy") finds
    ml.use("cupy")
    numpy.seterr(all="ignore")  # CuPy never warns
for path in paths:
    output, failed = io.StringIO(), ""
    if way == "strict":
        strict.LOG.asked.clear()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        try:
            runpy.run_path(path, run_name="__main__")
            if way == "strict":
                strict.LOG.no_wrapping()
                assert strict.LOG.asked, "the chapter never used the imitation of CuPy"
        except BaseException:
            failed = traceback.format_exc()
    if plt := sys.modules.get("matplotlib.pyplot"):
        plt.close("all")
    print(json.dumps([output.getvalue(), failed]), flush=True)
"""


@pytest.fixture(autouse=True)
def backend():
    """No backend fixture: a chapter runs in its own process."""


@pytest.fixture(params=CHAPTERS, ids=lambda path: path.stem)
def chapter(request) -> Path:
    return request.param


def cells(path: Path) -> list[tuple[bool, str]]:
    """Return (is markdown, text) of each cell."""
    parts = re.split(r"^# %%", path.read_text("utf-8"), flags=re.MULTILINE)[1:]
    return [(part.startswith(" [markdown]"), part.partition("\n")[2]) for part in parts]


def prose(path: Path) -> str:
    """Return the text of the markdown cells."""
    texts = [text for markdown, text in cells(path) if markdown]
    return "\n".join(re.sub(r"^# ?", "", text, flags=re.MULTILINE) for text in texts)


def test_there_are_chapters():
    assert CHAPTERS


# ---- Running


def start(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    own = {"MINILORA_FAST": "1", "MPLBACKEND": "Agg", "OPENBLAS_NUM_THREADS": "1"}
    folders = str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH")
    own |= {"PYTHONPATH": os.pathsep.join(filter(None, folders)), "PYTHONIOENCODING": "utf-8"}
    return subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, timeout=1200,
        env={**os.environ, **own}, capture_output=True, text=True, encoding="utf-8", check=False,
    )


@pytest.fixture(scope="module")
def runs(request, tmp_path_factory):
    """Run the selected chapters; return (way, chapter) -> (output, traceback).

    Each way runs all its chapters in one process: an import is dearer than a chapter.
    """
    items = [
        item for item in request.session.items
        if "runs" in item.fixturenames and not item.get_closest_marker("skip")
    ]
    selected = [
        (way, item.callspec.params["chapter"])
        for item in items
        for way in ([item.callspec.params["way"]] if "way" in item.callspec.params else TWICE)
    ]
    folder, by_way = tmp_path_factory.mktemp("chapters"), dict[str, list[Path]]()
    for way, path in dict.fromkeys(selected):
        by_way.setdefault(way, []).append(path)

    def run(way: str) -> dict:
        done = start(folder, "-c", RUN, way, *map(str, by_way[way]))
        results = [json.loads(line) for line in done.stdout.splitlines()]
        assert len(results) == len(by_way[way]), done.stderr
        return {(way, path): tuple(result) for path, result in zip(by_way[way], results)}

    with ThreadPoolExecutor(2) as pool:
        results = list(pool.map(run, by_way))
    assert not list(folder.iterdir())  # chapters leave no files behind
    return {key: value for result in results for key, value in result.items()}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("chapter", kept(CHAPTERS, *QUICK), indirect=True,
                         ids=[path.stem for path in CHAPTERS])
def test_it_runs_without_a_warning(chapter, way, runs):
    if (chapter.stem[:2], way) == ("15", "plain"):
        pytest.skip("it compares runs with and without kernels")
    output, failed = runs[way, chapter]
    assert not failed, failed
    assert "Caught: " in output
    assert "Traceback" not in output


@LONGER
def test_the_same_seed_prints_the_same_numbers_with_and_without_matplotlib(chapter, runs):
    """The run without matplotlib is a second run: it prints the same, except for the figures."""
    pytest.importorskip("matplotlib")
    script, bare = (runs[way, chapter][0].splitlines() for way in TWICE)
    assert not any(LEFT_OUT in line for line in script)
    first, second = ([x for x in lines if not SKIPPED.search(x)] for lines in (script, bare))
    assert first == second


# ---- Parts


def header(path: Path) -> dict[str, str]:
    """Return the fields of the header: title, then, minutes, needs, remember."""
    match = re.match(
        r"\n?# (?P<title>\d\d\. \w[^\n]*)\n\n"
        r"\*The reader can then:\* (?P<then>[^\n]+\.)\n"
        r"\*Time:\* (?P<minutes>\d+) minutes\. \*Needs:\* (?P<needs>[^\n]+)\.\n"
        r"\*Remember:\* (?P<remember>[^\n]+\.)\n(\n|$)",
        prose(path),
    )
    assert match, "after the title come three lines, as in the other chapters"
    return match.groupdict()


def named(text: str) -> list[str]:
    """Return the numbers of the chapters that a text names."""
    lists = re.findall(r"[Cc]hapters?\s+((?:\d\d(?:,?\s+(?:and|or|to)\s+|,\s+)?)+)", text)
    return [number for one in lists for number in re.findall(r"\d\d", one)]


def test_its_header_gives_the_time_and_the_prerequisites(chapter):
    head = header(chapter)
    assert head["title"].startswith(f"{chapter.stem[:2]}. ")
    assert 5 <= int(head["minutes"]) <= 60
    assert re.fullmatch(r"NumPy|chapters? \d\d(, \d\d)*( and \d\d)?", head["needs"])
    assert all(number < chapter.stem[:2] for number in named(head["needs"]))


def test_the_chapters_that_it_names_exist(chapter):
    assert set(named(prose(chapter))) <= set(NUMBERS)


def test_it_ends_with_the_next_chapter(chapter):
    later = [number for number in NUMBERS if number > chapter.stem[:2]]
    ending = prose(chapter).partition("**Next:**")[2]
    assert named(ending)[:1] == later[:1]


def test_it_has_the_parts_of_a_chapter(chapter):
    text = prose(chapter)
    assert text.count("**Predict.**") == 1
    answer = re.search(r"<details><summary>Answer</summary>\n\n(.+?)\n\n</details>", text, re.S)
    assert answer and answer.start() > text.index("**Predict.**")
    assert text.count("**Check.**") == 1
    assert text.count("\n## Break it\n") == 1
    assert "\n## What you built, and what is next\n" in text
    ending = text[text.index("\n## What you built") :]
    assert ending.count("**Next:**") == text.count("**Next:**") == 1


def test_check_and_break_it_are_followed_by_code(chapter):
    parts = cells(chapter)
    for mark, word in (("**Check.**", "assert"), ("## Break it", "Caught: ")):
        at = next(i for i, (markdown, text) in enumerate(parts) if markdown and mark in text)
        assert word in parts[at + 1][1]


def test_it_has_a_figure(chapter):
    assert any("viz.show(" in text for markdown, text in cells(chapter) if not markdown)


# ---- Code and prose


def test_it_is_short_and_imports_only_numpy_and_minilora(chapter):
    source = chapter.read_text("utf-8")
    assert len(source.splitlines()) <= 250
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) else []
        assert {name.split(".")[0] for name in names} <= ALLOWED


def test_its_code_fits_the_column_of_a_page(chapter):
    long = [line for markdown, cell in cells(chapter) if not markdown
            for line in cell.splitlines() if len(line) > 78]
    assert not long


def test_its_checks_print_what_they_compared(chapter):
    parts = cells(chapter)
    at = next(i for i, (markdown, text) in enumerate(parts) if markdown and "**Check.**" in text)
    assert re.search(r"print\(|run\(|viz\.", parts[at + 1][1])


def test_what_it_says_of_others_has_a_reference(chapter):
    for paragraph in prose(chapter).split("\n\n"):
        if re.search(r"\b(later work|work after|other papers|others found|et al)\b", paragraph):
            assert "arxiv.org" in paragraph


def test_the_names_it_imports_are_public(chapter):
    """In `from minilora import x`, x and every x.name exist and have no leading underscore."""
    tree = ast.parse(chapter.read_text("utf-8"))
    imported = {"ml": ml}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "minilora":
            module = importlib.import_module(node.module)
            for alias in node.names:
                assert not alias.name.startswith("_")
                if not hasattr(module, alias.name):  # a module that nothing has loaded yet
                    importlib.import_module(f"{node.module}.{alias.name}")
                imported[alias.asname or alias.name] = getattr(module, alias.name)
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            owner = imported.get(node.value.id)
            assert owner is None or hasattr(owner, node.attr), f"{node.value.id}.{node.attr}"
            assert owner is None or not node.attr.startswith("_")


def test_loops_are_written_by_hand_before_fit_is_introduced(chapter):
    if chapter.stem < BY_HAND:
        assert "fit(" not in "".join(text for markdown, text in cells(chapter) if not markdown)


def test_its_own_figures_have_axis_labels(chapter):
    for _, cell in cells(chapter):
        if re.search(rf"\bax\.({'|'.join(DRAWS)})\(", cell):
            assert "xlabel" in cell
            assert "ylabel" in cell


def test_formulas_are_closed_and_links_are_to_the_paper(chapter):
    text = prose(chapter)
    assert text.replace("$$", "").count("$") % 2 == 0
    assert text.count("$$") % 2 == 0
    assert all("arxiv.org" in link for link in re.findall(r"https?://[^\s)]+", text))


def test_its_prose_is_plain(chapter):
    text = prose(chapter)
    assert not re.search(r"\b([Ss]imply|[Oo]bviously|[Tt]rivially|[Jj]ust)\b|—|exercise \d\d", text)


def test_the_readme_lists_it_with_the_words_of_its_header(chapter):
    head = header(chapter)
    line = f"- [{head['title']}](tutorials/{chapter.name}): {head['then']}\n"
    assert line in (ROOT / "README.md").read_text("utf-8")
