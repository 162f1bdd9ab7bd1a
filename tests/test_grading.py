"""A teacher's path: what is handed in, whatever it is, is judged, and nothing else happens."""

import csv
import io
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import klass
import pytest

from minilora.exercises import book, classpage, gradebook, grading
from minilora.exercises import judge as judging
from minilora.exercises.student import Limits

pytestmark = pytest.mark.usefixtures("numpy_only")
NAME = "ex02_unbroadcast.py"
MEAN = "you take the mean of the uses, not their sum"


def silent(_):
    pass


def grade(folder, seed=7, jobs=2, **options):
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
    """Those of students' code that live, by where their folder is: other tests have some, too."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            if f"{within}/minilora-".encode() in entry.read_bytes():
                found.add(int(entry.parent.name))
        except OSError:
            continue
    return found


@pytest.fixture(scope="module")
def hostile(tmp_path_factory):
    """All that is hostile, graded once; among it, one who did it right."""
    folder, within = tmp_path_factory.mktemp("hostile"), tmp_path_factory.mktemp("run")
    hand_in(folder, aaa=right(), zzz=right())
    for name, data in klass.hostile(folder / "aaa" / NAME).items():
        (folder / name).mkdir()
        (folder / name / NAME).write_bytes(data)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", str(within))
        patch.setattr(tempfile, "tempdir", None)  # it is asked for again
        graded = grade(folder, jobs=4)
    assert (folder / "aaa" / NAME).read_text("utf-8") == right()
    return {pupil.name: pupil for pupil in graded.pupils}, processes(within)


def test_a_hostile_file_gets_nothing_and_takes_nothing(hostile):
    pupils, left = hostile
    assert {name for name, pupil in pupils.items() if pupil.points} == {"aaa", "zzz"}
    assert pupils["aaa"].points == pupils["zzz"].points == 10
    assert not left, "processes of submissions are still there"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("loop", "did not end within"), ("leave", "ended with exit code"),
        ("kill", "calls os.kill"),
        ("pidfd", "starts or signals a process"), ("fork", "calls os.fork"),
        ("a process, below", "starts or signals a process"), ("large", "more than 4 MiB"),
        ("forged flood", "no answer"), ("forged drops", "no answer"), ("forged ahead", "no answer"),
        ("forged arguments", "no answer"), ("forged array", "no answer"), ("frames", "= -7."),
        ("the exercise", "this reads"), ("the exercise, in place", "this reads"),
        ("the exercise, imported", "this reads"), ("the hook's names", "this reads"),
        ("the neighbour", "this reads"), ("patched paths", "this reads"),
        ("patched builtins", "to write"),
        ("patched NumPy", "expected the gradient"), ("always equal", "expected the gradient"),
        ("ctypes", "calls ctypes"), ("zeros", "cannot read the file"), ("no text", "not UTF-8"),
    ],
)
def test_it_is_told_what_became_of_it(hostile, name, words):
    parts = hostile[0][name].results[0].parts
    assert any(words in line for part in parts for line in part.lines), parts


def test_a_file_that_is_none_is_told_so(tmp_path):
    hand_in(tmp_path, one=right(), two=right())
    for name in ("large", "link", "folder", "pipe", "nothing"):
        (tmp_path / name).mkdir()
    with (tmp_path / "large" / NAME).open("wb") as file:
        file.truncate(100 << 20)
    (tmp_path / "link" / NAME).symlink_to(tmp_path / "one" / NAME)
    (tmp_path / "folder" / NAME).mkdir()
    os.mkfifo(tmp_path / "pipe" / NAME)
    (tmp_path / "two-ex02.py").write_text(right())  # the same student twice: which is meant?
    (tmp_path / "three_ex02_mine.py").write_text(right())
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / ".git").mkdir()
    (tmp_path / "readme.txt").write_text("")
    graded = grade(tmp_path)
    states = {pupil.name: pupil.results[0].state for pupil in graded.pupils}
    assert states == {
        "one": "passed", "three": "passed", "two": "absent", "nothing": "absent",
        "large": "unreadable", "link": "unreadable", "folder": "unreadable", "pipe": "unreadable",
    }
    assert graded.left_out == (".git", "loop", "readme.txt")


def outputs(of) -> tuple[bytes, ...]:
    return gradebook.table(of), gradebook.as_json(of), classpage.page(of)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A class of twelve, what was planted, and what came."""
    folder = tmp_path_factory.mktemp("class")
    planted = klass.make(folder, 12, 7, ["02"])
    return folder, planted, grade(folder)


def test_the_table_equals_what_was_planted(small):
    _, planted, graded = small
    assert klass.got(graded) == planted
    assert {points for row in planted.values() for points, _ in row.values()} >= {0, 10}
    assert any(mistakes for row in planted.values() for _, mistakes in row.values())
    table = [*csv.reader(io.StringIO(gradebook.table(graded).decode()))]
    assert table[0] == ["student", "02", "points", "of"]
    assert [int(row[1]) for row in table[1:]] == [row["02"][0] for row in planted.values()]


def test_two_runs_and_other_jobs_give_the_same_bytes(small):
    folder, _, graded = small
    assert outputs(grade(folder, jobs=1)) == outputs(graded)


def test_a_run_that_was_interrupted_goes_on(small, tmp_path):
    folder, _, graded = small
    seen = []

    def stop(line):
        seen.append(line)
        if len(seen) == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        grade(folder, say=stop, store=tmp_path, jobs=1)
    done = {path: path.stat().st_mtime_ns for path in tmp_path.glob("*.json")}
    assert done
    min(done).write_text("{")  # damaged: judged again
    assert outputs(grade(folder, store=tmp_path)) == outputs(graded)
    assert all(path.stat().st_mtime_ns == done[path] for path in done if path != min(done))
    lines = []
    assert outputs(grade(folder, store=tmp_path, say=lines.append)) == outputs(graded)
    assert lines == ["12 of 12 need no judging: no file, or judged before"]
    key = grading._Store(tmp_path, 7, klass.SOON).key
    first, second = book.exercise("01"), book.exercise("02")
    others = {key(second, "x"), key(second, "y"), key(first, "x"),
              grading._Store(tmp_path, 8, klass.SOON).key(second, "x")}
    assert len(others) == 4


def test_a_judge_that_dies_costs_one_file_only(tmp_path, monkeypatch):
    hand_in(tmp_path, a=right(), b=right())
    result, died = grading._Judge.result, []

    def dies(self, of, source):
        if not died:
            died.append(self._running())
            os.kill(died[0].pid, signal.SIGKILL)
        return result(self, of, source)

    monkeypatch.setattr(grading._Judge, "result", dies)
    graded = grade(tmp_path, jobs=1)
    assert [pupil.points for pupil in graded.pupils] == [0, 10]
    assert "could not be judged" in graded.pupils[0].results[0].parts[0].lines[0]


def _printed(process: int) -> bytes:
    try:
        return Path(f"/proc/{process}/cwd/printed.txt").read_bytes()
    except OSError:
        return b""


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere a killed judge leaves a process")
def test_who_is_killed_leaves_no_process(tmp_path):
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
    """Tags, as they are opened and closed, and addresses."""

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


def test_the_page_says_what_to_talk_about(tmp_path):
    mean = klass.wrong("02", 7)[MEAN][0]
    hand_in(
        tmp_path,
        ann=right(),
        bob=mean,
        eve=mean,
        **{"<script>x": book.exercise("02").stub()},
    )
    (tmp_path / "cy").mkdir()
    (tmp_path / "cy" / NAME).write_text(klass.answer(klass.BODY["script"]))
    graded = grade(tmp_path)
    made = classpage.mistakes(graded)
    assert [(one.mistake, one.names) for one in made] == [(MEAN, ("bob", "eve"))]
    assert {name for name, _ in classpage.stuck(graded)} == {"bob", "eve", "cy"}
    page = Page(classpage.page(graded).decode())
    assert not page.open and not page.folded and "script" not in page.tags
    assert {address[1:] for address in page.addresses} == page.ids - {"main"}
    text = " ".join(page.text.split())
    assert f"2 students: {MEAN}" in text and "1 passed, 0 with some points, 3 with none" in text
    assert "1 not begun" in text and "<script>x" in text
    assert not re.search(r"url\(|@import", page.text)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(classpage, "VISIBLE", 1)
        page = Page(classpage.page(graded).decode())
    assert page.folded.startswith("2 more") and page.folded.count("02 un-broadcast") == 2
    assert not page.open and all(page.text.count(name) > 1 for name in ("bob", "eve", "cy"))


def test_gradescope_takes_one_student_and_gets_each_check(tmp_path):
    hand_in(
        tmp_path,
        ann=right(),
        bob=klass.answer("return g.sum(axis=tuple(range(g.ndim - len(shape))))"),
    )
    held = json.loads(gradebook.gradescope(grade(tmp_path / "bob")))
    assert held["score"] == 3 == sum(test["score"] for test in held["tests"])
    assert sum(test["max_score"] for test in held["tests"]) == 10
    failed = [test for test in held["tests"] if test["status"] == "failed"]
    assert len(failed) == 2 and all("but not the repeated ones" in one["output"] for one in failed)
    with pytest.raises(ValueError, match="one student at a time"):
        gradebook.gradescope(grade(tmp_path))


def test_names_of_every_kind_are_told(tmp_path):
    odd = os.fsdecode(b"\xff\xfe")
    hand_in(tmp_path, **{name.replace("/", "|"): right() for name in klass.NAMES}, **{odd: right()})
    graded = grade(tmp_path)
    assert [pupil.points for pupil in graded.pupils] == [10] * len(graded.pupils)
    rows = [*csv.reader(io.StringIO(gradebook.table(graded).decode()))]
    assert len(rows) == len(graded.pupils) + 1 and len({row[0] for row in rows}) == len(rows)
    assert "'=HYPERLINK(1)" in {row[0] for row in rows}
    assert classpage.page(graded) and gradebook.as_json(graded)


def test_a_folder_with_nothing_in_it_is_refused(tmp_path):
    with pytest.raises(ValueError, match="contains no submission"):
        grade(tmp_path)
    with pytest.raises(ValueError, match="is not a folder"):
        grade(tmp_path / "there")


def test_the_solution_is_not_beside_the_student():
    """What an exercise runs beside a student comes from its file, and is found by who looks."""
    of = book.exercise("03")
    looks = (
        "import sys\n    frame = sys._getframe()\n    while frame:\n"
        "        found = frame.f_locals.get('drivers')\n"
        "        if found: return found['chain'].__globals__['backward'](node)\n"
        "        frame = frame.f_back"
    )
    verdict = judging.judge(of, of.stub().replace(book.TODO, looks, 1), limits=klass.SOON)
    assert verdict.points == 0 and {one.kind for one in verdict.outcomes} == {"todo"}


def test_calls_have_a_limit_together(tmp_path):
    body = "import time; time.sleep(0.2)"
    slow = right().replace("    new = g.ndim", f"    {body}\n    new = g.ndim")
    verdict = judging.judge(book.exercise("02"), slow, limits=Limits(total=1.0))
    assert verdict.points == 0
    assert "its calls took more than 1 seconds in total" in verdict.outcomes[0].lines


def test_a_check_that_stumbles_gives_no_points():
    of = book.exercise("02")
    stumbles = replace(of.checks[0], run=lambda student, **case: [][0])
    verdict = judging.judge_here(replace(of, checks=(stumbles, *of.checks[1:])), of.reference)
    assert verdict.points == of.points - stumbles.points
    assert "IndexError" in verdict.outcomes[0].lines[1]
