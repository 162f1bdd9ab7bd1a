"""Grading: any submission is judged, and does no harm."""

import ast
import csv
import io
import itertools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import types
from concurrent.futures import BrokenExecutor, ThreadPoolExecutor
from dataclasses import asdict, replace
from html.parser import HTMLParser
from pathlib import Path

import klass
import pytest
from conftest import kept
from test_jobs import started

from minilora import cli
from minilora.backend.threads import threads
from minilora.exercises import (
    book,
    child,
    classpage,
    desk,
    gradebook,
    grading,
    results,
    soundness,
    store,
    submissions,
)
from minilora.exercises import judge as judging
from minilora.exercises.student import Limits
from minilora.files.journal import Journal
from minilora.jobs import executors

pytestmark = pytest.mark.usefixtures("numpy_only")
NAME = "ex02_unbroadcast.py"
SEED = 8  # its class of seven has files of each kind
MEAN = "you take the mean of the uses, not their sum"


def silent(_):
    pass


def grade(folder, seed=SEED, jobs=1, **options):
    options = {"only": ["02"], "limits": klass.SOON, "say": silent} | options
    return grading.grade(folder, seed, jobs, **options)


def hand_in(folder: Path, **files: str) -> Path:
    for name, text in files.items():
        (folder / name).mkdir(parents=True)
        (folder / name / NAME).write_text(text, "utf-8")
    return folder


def right() -> str:
    return book.exercise("02").solution()


def processes(within: Path) -> set[int]:
    """The running processes of students' code whose folder is in this one."""
    running = set()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{within}/minilora-".encode() in entry.read_bytes():
                running.add(int(entry.parent.name))
        except OSError:
            continue
    return running


@pytest.fixture(scope="module", autouse=True)
def few_cases(tmp_path_factory):
    """02 draws few cases here, and 91 is its third check only. test_exercises.py has the whole."""
    klass.own(folder := tmp_path_factory.mktemp("own"), "02")
    klass.own(folder, "91", "new_axes", "stretched_axes", "dtypes")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(book.OWN, str(folder))
        book.exercise.cache_clear()
        klass.wrong.cache_clear()
        yield
    book.exercise.cache_clear()
    klass.wrong.cache_clear()


@pytest.fixture(scope="module", params=["91", pytest.param("02", marks=pytest.mark.thorough)])
def hostile(tmp_path_factory, request):
    """Hostile files, and two right ones among them, graded once. The thorough run takes all, and
    gives each attack several checks to try."""
    folder, within = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("run")
    of = book.exercise(request.param)
    files = klass.hostile(folder / "aaa" / of.name)
    assert {*klass.ALIKE} < {*files}
    if request.param == "91":
        files = {name: data for name, data in files.items() if name not in klass.ALIKE}
    for name, data in (files | dict.fromkeys(("aaa", "zzz"), right().encode())).items():
        (folder / name).mkdir()
        (folder / name / of.name).write_bytes(data)
    result = grading._Judge.result

    def limited(self, of, source):  # a right file keeps the limits that no busy machine reaches
        self._limits = klass.SOON if source == right() else klass.ATTACK
        return result(self, of, source)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(grading._Judge, "result", limited)
        patch.setenv("TMPDIR", str(within))
        patch.setattr(tempfile, "tempdir", None)  # tempfile reads TMPDIR again
        graded = grade(folder, jobs=2, only=[of.number])
    assert (folder / "aaa" / of.name).read_text("utf-8") == right()
    return {pupil.name: pupil for pupil in graded.pupils}, processes(within), of


def test_a_hostile_file_gets_nothing_and_takes_nothing(hostile):
    pupils, left, of = hostile
    assert {name for name, pupil in pupils.items() if pupil.points} == {"aaa", "zzz"}
    assert pupils["aaa"].points == pupils["zzz"].points == of.points
    assert not left, "processes of submissions are still there"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loop", "within 0.15 seconds of processor time"),
        ("sleep", "did not end within 1.5 seconds"),
        ("leave", "ended with exit code"),
        ("kill", "calls os.kill"),
        ("pidfd", "starts or signals a process"), ("fork", "calls os.fork"),
        ("a process, below", "starts or signals a process"), ("large", "more than 4 MiB"),
        ("forged flood", "no answer"), ("forged drops", "no answer"), ("forged ahead", "no answer"),
        ("forged arguments", "no answer"), ("forged array", "no answer"), ("frames", "= -7."),
        ("the exercise", "this reads"), ("the exercise, in place", "this reads"),
        ("the exercise, imported", "minilora"), ("the hook's names", "this reads"),
        ("the neighbour", "this reads"), ("patched paths", "this reads"),
        ("patched builtins", "to write"),
        ("patched NumPy", "expected the gradient"), ("always equal", "expected the gradient"),
        ("ctypes", "ctypes"), ("a folder's descriptor", "by a descriptor"),
        ("a path that lies", "this reads"), ("a special file", "special file"),
        ("a pipe with a name", "special file"), ("a module again", "imports posix"),
        ("another's process", "special file"), ("a history file", "imports readline"),
        ("no Python", "cannot read the file"), ("no text", "not UTF-8"),
    ],
)
def test_a_hostile_file_gets_a_message(hostile, name, words):
    parts = hostile[0][name].results[0].parts
    assert any(words in line for part in parts for line in part.lines), parts


def test_unusable_files_are_named(tmp_path):
    hand_in(tmp_path, one=right(), two=right())
    for name in ("large", "link", "folder", "pipe", "nothing"):
        (tmp_path / name).mkdir()
    with (tmp_path / "large" / NAME).open("wb") as file:
        file.truncate(100 << 20)
    (tmp_path / "link" / NAME).symlink_to(tmp_path / "one" / NAME)
    (tmp_path / "folder" / NAME).mkdir()
    os.mkfifo(tmp_path / "pipe" / NAME)
    (tmp_path / "two" / NAME).rename(tmp_path / "two" / "ex02_a.py")
    (tmp_path / "two" / "ex02_b.py").write_text(right())  # which one counts?
    (tmp_path / "three_ex02_mine.py").write_text(right())
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".git").mkdir()
    hand_in(tmp_path, **{".dot": right()})
    (tmp_path / "readme.txt").write_text("")
    graded = grade(tmp_path)
    states = {pupil.name: pupil.results[0].state for pupil in graded.pupils}
    assert states == {
        ".dot": "passed", "one": "passed", "three": "passed", "two": "absent", "nothing": "absent",
        "large": "unreadable", "link": "unreadable", "folder": "unreadable", "pipe": "unreadable",
    }
    assert graded.left_out == (".git", "loop", "readme.txt")


def outputs(of) -> tuple[bytes, ...]:
    return gradebook.table(of), gradebook.as_json(of), classpage.page(of)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A class of seven: its folder, the expected and the actual results."""
    folder = tmp_path_factory.mktemp("class")
    planted = klass.make(folder, 7, SEED, ["02"])
    return folder, planted, grade(folder, jobs=2)


def test_the_results_are_the_expected_ones(small):
    _, planted, graded = small
    assert klass.got(graded) == planted
    assert {points for row in planted.values() for points, _ in row.values()} >= {0, 10}
    assert any(mistakes for row in planted.values() for _, mistakes in row.values())
    table = [*csv.reader(io.StringIO(gradebook.table(graded).decode("utf-8-sig")))]
    assert table[0] == ["student", "02", "points", "of"]
    assert [int(row[1]) for row in table[1:]] == [row["02"][0] for row in planted.values()]


def test_an_interrupted_run_continues_and_the_number_of_jobs_changes_no_byte(small, tmp_path):
    folder, _, graded = small
    count = itertools.count(1)

    def stop(line):
        if next(count) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade(folder, say=stop, store=tmp_path, jobs=1)
    journal = tmp_path / store.JOURNAL
    done = journal.read_bytes()
    assert 0 < done.count(b"\n") < 7 and b"def " not in done  # it keeps no file's text
    journal.write_bytes(done[:-9])  # the last line is torn: this result is judged again
    assert outputs(grade(folder, store=tmp_path)) == outputs(graded)
    lines = []
    assert outputs(grade(folder, store=tmp_path, say=lines.append)) == outputs(graded)
    assert lines == ["7 of 7 need no judging: no file, or judged before"]
    second = book.exercise("02")
    others = {store.File.of(*one).key for one in (
        (second, "x", SEED, klass.SOON), (second, "y", SEED, klass.SOON),
        (book.exercise("01"), "x", SEED, klass.SOON), (second, "x", SEED + 1, klass.SOON),
        (second, "x", SEED, klass.ATTACK))}
    assert len(others) == 5


def test_files_with_the_same_text_are_judged_once(tmp_path, monkeypatch):
    hand_in(tmp_path, a=right(), b=right(), c=right() + "# another")
    result, judged, lines, before = grading._Judge.result, [], [], threads(2)
    monkeypatch.setattr(
        grading._Judge, "result", lambda *of: judged.append(of) or result(*of))
    try:
        graded = grade(tmp_path, say=lines.append, jobs=2)
    finally:
        kept = threads(before)
    assert [pupil.points for pupil in graded.pupils] == [10, 10, 10] and len(judged) == 2
    assert [line.split()[0] for line in lines] == ["1/3", "2/3", "3/3"]
    assert kept == 2  # the process's own number of threads


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["processes", "loky", "dask"])
def test_every_executor_gives_the_same_class(small, tmp_path, name):
    folder, _, graded = small
    started(name)
    with executors.pool(name, 2) as pool:
        assert outputs(grade(folder, store=tmp_path, executor=pool)) == outputs(graded)
    lines = []
    assert outputs(grade(folder, store=tmp_path, say=lines.append)) == outputs(graded)
    assert lines == ["7 of 7 need no judging: no file, or judged before"]


def test_a_worker_with_other_exercises_is_refused():
    job = store.File.of(book.exercise("02"), right(), SEED, klass.SOON)
    with pytest.raises(RuntimeError, match=r"a worker has other exercises.*install the same"):
        grading.judged("grade", {**job.config, "versions": "others"})


def test_a_worker_that_ends_twice_costs_its_file_only_and_nothing_of_it_is_kept(
    tmp_path, monkeypatch
):
    hand_in(tmp_path / "class", a="ends its worker", b=right())

    def judged(kind, config):
        if config["source"] == "ends its worker":
            raise BrokenExecutor
        return asdict(results.Result("02", 10, 10, ()))

    monkeypatch.setattr(grading, "judged", judged)
    pool = executors.Pool(lambda: ThreadPoolExecutor(1), 1)
    graded = grade(tmp_path / "class", store=tmp_path, executor=pool)
    assert [pupil.points for pupil in graded.pupils] == [0, 10] and graded.unjudged == ("a",)
    assert len(Journal(tmp_path / store.JOURNAL)) == 1


@pytest.mark.parametrize(("deaths", "points"), [(1, [10, 10]), (2, [0, 10])])
def test_a_judge_that_dies_tries_again_and_then_says_so(tmp_path, monkeypatch, deaths, points):
    hand_in(folder := tmp_path / "class", a=right(), b=right() + "# another")
    running, died = grading._Judge._running, []

    def dies(self):
        process = running(self)
        if len(died) < deaths:
            died.append(process)
            os.kill(process.pid, signal.SIGKILL)
        return process

    monkeypatch.setattr(grading._Judge, "_running", dies)
    graded = grade(folder, jobs=1, store=tmp_path / "store")
    assert [pupil.points for pupil in graded.pupils] == points
    assert len(Journal(tmp_path / "store" / store.JOURNAL)) == sum(map(bool, points))
    if deaths == 2:
        (result,) = graded.pupils[0].results
        assert result.state == "not judged" and "could not be judged" in result.parts[0].lines[0]
        assert graded.unjudged == ("a",)


def _printed(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cwd/printed.txt").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed judge leaves a process")
def test_a_killed_judge_leaves_no_process(tmp_path):
    (within := tmp_path / "run").mkdir()
    (folder := tmp_path / "class").mkdir()
    hand_in(folder, a=klass.answer("import time; print(1); time.sleep(1e6)"))
    code = f"from minilora.exercises import grading; grading.grade({str(folder)!r}, only=['02'])"
    where = os.environ | {"TMPDIR": str(within)}
    run = subprocess.Popen([sys.executable, "-c", code], start_new_session=True, env=where)
    while not any(_printed(one) for one in processes(within)):
        assert run.poll() is None
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    for _ in range(200):
        if not processes(within):
            return
        time.sleep(0.05)
    raise AssertionError("a student's process outlives its judge")


class Page(HTMLParser):
    """A parsed page: its tags, addresses, ids and text; fails on tags that do not match."""

    def __init__(self, text):
        super().__init__()
        self.open, self.addresses, self.tags, self.text = [], [], set(), ""
        self.ids, self.folded = set(), ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.addresses += [value for name, value in attrs if name in ("src", "href")]
        self.ids |= {value for name, value in attrs if name == "id"}
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data
        self.folded += data * ("details" in self.open)


def test_the_class_page(tmp_path):
    mean = klass.wrong("02", SEED)[MEAN][0]
    script = {"<script>x": book.exercise("02").stub()}
    hand_in(tmp_path, ann=right(), bob=mean, eve=mean, **script)
    (tmp_path / "cy").mkdir()
    (tmp_path / "cy" / NAME).write_text(klass.answer(klass.BODY["script"]))
    graded = grade(tmp_path)
    entries = classpage.mistakes(graded)
    assert [(one.mistake, one.names) for one in entries] == [(MEAN, ("bob", "eve"))]
    assert {name for name, _ in classpage.stuck(graded)} == {"bob", "eve", "cy"}
    page = Page(classpage.page(graded).decode())
    assert not page.open and not page.folded and "script" not in page.tags
    assert {address[1:] for address in page.addresses} == page.ids - {"main"}
    text = " ".join(page.text.split())
    assert f"2 students: {MEAN}" in text and "1 passed, 2 with some points, 1 with none" in text
    assert "1 not begun" in text and "<script>x" in text
    assert not re.search(r"url\(|@import", page.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classpage, "VISIBLE", 1)
        page = Page(classpage.page(graded).decode())
    assert page.folded.startswith("2 more") and page.folded.count("02 un-broadcast") == 2
    assert not page.open and all(page.text.count(name) > 1 for name in ("bob", "eve", "cy"))


@pytest.fixture
def all_cases(monkeypatch):
    """02 as it is: what a file half right earns depends on the cases."""
    monkeypatch.delenv(book.OWN)
    book.exercise.cache_clear()
    yield
    book.exercise.cache_clear()


def test_gradescope_takes_one_student_and_gets_each_check(tmp_path, all_cases):
    partly = klass.answer("return g.sum(axis=tuple(range(g.ndim - len(shape))))")
    hand_in(tmp_path, bob=partly)
    graded = grade(tmp_path / "bob")
    data = json.loads(gradebook.gradescope(graded))
    assert data["score"] == 4 == sum(test["score"] for test in data["tests"])
    assert sum(test["max_score"] for test in data["tests"]) == 10
    failed = [test for test in data["tests"] if test["status"] == "failed"]
    assert len(failed) == 2 and all("but not the repeated ones" in one["output"] for one in failed)
    with pytest.raises(ValueError, match="one student at a time"):
        gradebook.gradescope(replace(graded, pupils=graded.pupils * 2))


@pytest.mark.parametrize(("option", "name"), [
    ("--csv", "out.csv"), ("--html", "out.html"), ("--json", "out.json"),
    ("--gradescope", "out.json"),
])
def test_a_file_is_replaced_only_as_it_was_written(tmp_path, monkeypatch, capsys, option, name):
    monkeypatch.chdir(tmp_path)
    for place in ("a/ann", "b/bob"):
        (tmp_path / place).mkdir(parents=True)
    (tmp_path / "b" / "bob" / NAME).write_bytes(b"\xff")  # no file, and no text: no judge is needed

    def run(of, *words, code=0):
        assert cli.main(["ex", "grade", of, "--only", "02", option, name, *words]) == code
        said = "".join(capsys.readouterr())
        return (tmp_path / name).read_bytes(), said

    first, _ = run("a")
    assert run("a")[0] == first
    second, _ = run("b")  # its own file may get another content
    assert second != first
    for theirs in (second + b"\n", b"", b"mine"):
        (tmp_path / name).write_bytes(theirs)
        kept, said = run("b", code=2)
        assert kept == theirs and f"{name} exists" in said and "--force" in said
    assert run("b", "--force")[0] == second == run("b")[0]


def test_two_options_write_no_file_twice(tmp_path, monkeypatch, capsys):
    hand_in(tmp_path, ann="no Python (")
    (tmp_path / "link.json").symlink_to(tmp_path / "a.json")
    monkeypatch.chdir(tmp_path)
    for other in ("a.json", "./a.json", "link.json", str(tmp_path / "a.json")):
        assert cli.main(["ex", "grade", ".", "--json", "a.json", "--gradescope", other]) == 2
        assert "give each another name" in capsys.readouterr().err
    assert not (tmp_path / "a.json").exists()


def test_names_of_every_kind(tmp_path):
    names = [name.replace("/", "|") for name in klass.NAMES] + [os.fsdecode(b"\xff\xfe")]
    hand_in(tmp_path, **dict.fromkeys(names, "no Python ("))
    graded = grade(tmp_path, jobs=1)
    assert {pupil.name for pupil in graded.pupils} == {*names}
    rows = [*csv.reader(io.StringIO(gradebook.table(graded).decode("utf-8-sig")))]
    assert len(rows) == len(graded.pupils) + 1 and len({row[0] for row in rows}) == len(rows)
    assert "'=HYPERLINK(1)" in {row[0] for row in rows}
    assert classpage.page(graded) and gradebook.as_json(graded)


@pytest.mark.parametrize("name", kept(
    [" =1+1", "\u3000\uff1d1", "\uff0bA1", "\t@x", "-2", "%a"], "\u3000\uff1d1", "%a"))
def test_a_spreadsheet_reads_no_name_as_a_formula(tmp_path, name):
    hand_in(tmp_path, **{name: "no Python ("})
    text = gradebook.table(grade(tmp_path, jobs=1))
    assert text.startswith(b"\xef\xbb\xbf") and text.decode("utf-8-sig").splitlines()[1][0] == "'"


@pytest.mark.parametrize(("names", "words"), [
    (["ann/a.py", "ex02_b.py"], "no student's name"),
    (["ann/a.py", "ex02_carla/a.py"], "begins like"), (["ex02_carla/a.py"], "begins like"),
    (["ann/a.py", "bob.py"], "no number of an exercise"),
    (["ann/ex02_a.py", "ann-ex02.py"], "which one counts"),
    (["Ann/a.py", "ann/a.py"], "one student"),
    (["a-ex02.py", "a_ex02_x.py"], "which one counts"),
    (["Zoe\u0301/a.py", "Zo\u00e9/a.py"], "one student"),
    (["readme.txt"], "contains no submission"),
])
def test_what_could_be_read_in_two_ways_is_listed(tmp_path, names, words):
    for name in names:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(ValueError, match=words):
        submissions.submissions(tmp_path, grading.chosen(["02", "02"]))


def test_a_name_ends_where_the_exercise_begins(tmp_path):
    for name in ("Alex01-ex02_a.py", "Al-ex02_a.py", "max02_ex02.py", "ex_tom ex02.py"):
        (tmp_path / name).write_text("")
    (one,) = grading.chosen(["02", "2"])
    assert [*submissions.submissions(tmp_path, (one,))[0]] == ["Al", "Alex01", "ex_tom", "max02"]


def test_a_dry_run_lists_and_judges_nothing(tmp_path, ex, monkeypatch):
    hand_in(tmp_path / "class", ann=right(), bob="x = (")
    monkeypatch.setattr(grading, "grade", None)
    said = ex("grade", "class", "--only", "02", "--list")
    assert f"ann\n  02  ann/{NAME}" in said and "2 students; nothing was judged" in said
    assert {path.name for path in tmp_path.iterdir()} == {"class"}


@pytest.mark.parametrize(("files", "points", "words"), [
    ({}, 0, "it is empty"), ({"unbroadcast.py": "x"}, 0, "what is there is unbroadcast.py"),
    ({"a/ex02_a.py": "x", "b/ex02_a.py": "x"}, 0, "what is there is a, b"),
    ({"ex02_a.py": "x", "ex02_b.py": "x"}, 0, "2 files for this exercise"),
    ({"sub/ex02_mine.py": None}, 3, "right"),
])
def test_gradescope_always_gets_a_file_and_nothing_else(tmp_path, ex, files, points, words):
    (place := tmp_path / "submission").mkdir()
    (out := tmp_path / "results").mkdir()
    for name, text in files.items():
        (place / name).parent.mkdir(exist_ok=True)
        (place / name).write_text(right() if text is None else text)
    number = "91" if points else "02"
    for path in [*place.rglob("ex02*.py")] if points else []:
        path.rename(path.with_name("ex91_mine.py"))
    line = ["grade", str(place), "--only", number, "--gradescope", str(out / "results.json")]
    ex(*line)
    data = json.loads((out / "results.json").read_bytes())
    assert data["score"] == points and words in data["tests"][0]["output"], data
    assert {*data} <= {"score", "execution_time", "output", "output_format", "visibility",
                       "stdout_visibility", "extra_data", "tests", "leaderboard"}
    assert {*data["tests"][0]} <= {"score", "max_score", "status", "name", "name_format", "number",
                                   "output", "output_format", "tags", "visibility", "extra_data"}
    ex(*line)  # its own file may be replaced
    assert [path.name for path in out.iterdir()] == ["results.json"]


def broken(folder: Path, below: str) -> None:
    (folder / "ex93_own.py").write_text(
        (book.TASKS / "ex02_unbroadcast.py").read_text("utf-8") + klass.FEW + below, "utf-8")


BROKEN = [
    ("raise OSError('gone')", "cannot be read: OSError: gone"),
    ("import gone_module", "gone_module"),
    ("del TITLE", "TITLE"),
    ("@kit.check(st.just({}), points=5)\ndef broken(student):\n    'Broken.'\n    import gone\n",
     "cannot be judged: its own solution gets 10 of 15"),
]


@pytest.mark.parametrize(("below", "words"), kept(BROKEN, BROKEN[-1], BROKEN[2]))
def test_a_broken_exercise_stops_the_run_and_nothing_of_it_is_kept(
    tmp_path, ex, monkeypatch, below, words
):
    (own := tmp_path / "own").mkdir()
    monkeypatch.setenv(book.OWN, str(own))
    (tmp_path / "class").mkdir()
    (tmp_path / "class" / "ann-ex93.py").write_text(klass.answer("return g"))
    line = ["grade", "class", "--only", "93", "--csv", "out.csv"]
    for text, code in ((below, 2), ("", 0)):  # mended
        broken(own, text)
        for cached in (book.exercise, book._module, soundness._failure):
            cached.cache_clear()
        said = ex(*line, code=code)
        assert (words in said and "Traceback" not in said) == bool(text), said
        assert (tmp_path / "out.csv").exists() == (not text)
        assert (tmp_path / ".minilora-grades" / store.JOURNAL).exists() == (not text)


def test_a_full_disk_is_no_zero(tmp_path, monkeypatch):
    monkeypatch.setattr(soundness, "ROOM", 1 << 62)
    wrong = {"unbroadcast": lambda g, s: g}
    verdict = judging.judge_here(book.exercise("02"), wrong, explain=False)
    with pytest.raises(child.Fault, match="is full"):
        soundness.assure(book.exercise("02"), verdict)


def test_the_own_folder_must_be_one(monkeypatch, ex, tmp_path):
    monkeypatch.setenv(book.OWN, str(tmp_path / "gone"))
    assert "which is no folder" in ex("init", code=2)
    monkeypatch.delenv(book.OWN)
    ex("init", "--only", "02,02")
    progress = tmp_path / "exercises" / desk.PROGRESS
    assert json.loads(progress.read_text())["course"] == ["02"]
    progress.write_text(progress.read_text().replace('"02"', '"94"', 1))
    said = ex("status", code=2)
    assert "94, which this minilora does not have" in said and "damaged" not in said


def test_an_interrupted_grading_says_what_it_kept_and_leaves_nothing(tmp_path, ex, monkeypatch):
    (within := tmp_path / "within").mkdir()
    monkeypatch.setenv("TMPDIR", str(within))
    monkeypatch.setattr(tempfile, "tempdir", None)
    slow = klass.answer("import time; time.sleep(30)")
    hand_in(tmp_path / "class", a=right(), b=slow)

    def stop(line):
        if "a  02" in line:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt, match=r"interrupted: 1 of 2 files .* kept: run the same"):
        grade(tmp_path / "class", say=stop, store=tmp_path / "store", jobs=2)
    assert not [*within.iterdir()] and not processes(within)


def test_an_empty_folder_is_refused(tmp_path):
    with pytest.raises(ValueError, match="contains no submission"):
        grade(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        grade(tmp_path / "there")


FOUND = """
import sys, types
def _walk(value, depth=6, seen=set()):
    if depth and id(value) not in seen:
        seen.add(id(value))
        yield value
        inside = [*value.items()] if type(value) is dict else value if type(value) in (
            list, tuple, set) else [getattr(value, n, None) for n in (
            "__dict__", "__globals__", "__closure__", "__self__", "cell_contents", "f_locals",
            "f_globals", "f_back")]
        for one in [*inside]:
            try: yield from _walk(one, depth - (type(value) not in (tuple, dict)), seen)
            except ValueError: pass
def _all():
    frame = sys._getframe()
    while frame:
        yield from _walk([frame.f_locals, frame.f_globals])
        frame = frame.f_back
    yield from _walk([dict(sys.modules)])
def _look(name):
    for one in _all():
        code = getattr(one, "__code__", None)
        if type(one) is types.FunctionType and (one.__name__ in WANTED or WANTED & {*code.co_names}
                                                ) and code.co_filename != __file__:
            raise KeyError(one.__name__)
"""


@pytest.mark.parametrize("number", [
    "03", "09", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("07", "08", "13"))])
def test_a_students_process_holds_no_part_of_an_exercise(number):
    """Walk from the frames and the modules to every function: none is a driver's or a solution's.
    """
    of = book.exercise(number)
    module = book._module(of.path)
    given = book._defined(of.given, ast.FunctionDef, ast.ClassDef)
    names = {name for name, one in vars(module).items()
             if isinstance(one, types.FunctionType) and one.__module__ is not None
             and one.__code__.co_filename == str(of.path)} - {*given} | {"_matches", "expected"}
    looks = of.stub().replace(book.TODO, "return _look(0)") + f"\nWANTED = {names!r}\n{FOUND}"
    (first, *_) = judging.judge(replace(of, checks=of.checks[:1]), looks).outcomes
    assert not first.points and "KeyError" not in "".join(first.lines), first


@pytest.mark.parametrize("number", ["09", "13"])
def test_doing_nothing_in_a_driven_exercise_gets_nothing(number):
    of = book.exercise(number)
    name = of.functions[0]
    reaches = (
        "import sys\n    frame = sys._getframe()\n    while frame:\n"
        "        for space in (frame.f_locals, frame.f_globals):\n"
        "            if 'drivers' in space or 'student' in space: raise SystemExit\n"
        "            space.update(tried=lambda *a: True, drivers={}, faults=lambda *a: [])\n"
        "        frame = frame.f_back"
    )
    for body in ("pass", reaches):
        source = of.stub().replace(book.TODO, body) if number == "09" else re.sub(
            rf"(def {name}.*\n.*\n)[^\0]*", rf"\1    {body}\n", of.stub())
        assert judging.judge(of, source).points == 0


def test_all_calls_together_have_a_limit(tmp_path):
    body = "import time; time.sleep(0.2)"
    slow = right().replace("    new = g.ndim", f"    {body}\n    new = g.ndim")
    verdict = judging.judge(book.exercise("02"), slow, limits=Limits(total=1.0))
    assert verdict.points == 0
    assert "its calls took more than 1 seconds in total, the limit" in verdict.outcomes[0].lines


def test_a_check_that_raises_gives_no_points():
    of = book.exercise("02")
    raising = replace(of.checks[0], run=lambda student, **case: [][0])
    verdict = judging.judge_here(replace(of, checks=(raising, *of.checks[1:])), of.reference)
    assert verdict.points == of.points - raising.points
    assert "IndexError" in verdict.outcomes[0].lines[1]
