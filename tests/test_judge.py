"""The judge: its own failures are never the student's, its limits have names, its reader is one."""

import functools
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import replace
from pathlib import Path

import klass
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.exercises import book, child, desk, grading, judge, milestones, soundness, submissions
from minilora.exercises import remote as students
from minilora.exercises.remote import Remote
from minilora.exercises.student import LIMITS, Limits, Local
from minilora.files import cache, text

pytestmark = pytest.mark.usefixtures("numpy_only")
PACKAGE = Path(book.__file__).parents[1]
UNBROADCAST = book.exercise("02")
RIGHT = UNBROADCAST.solution()
RULE = "    new = g.ndim - len(shape)"
assert RULE in RIGHT


# what fails before the student's first line


def numpy_is(tmp_path, monkeypatch, source):
    """In the processes of the judge, `import numpy` runs this source."""
    (tmp_path / "first").mkdir()
    (tmp_path / "first" / "numpy.py").write_text(source)
    monkeypatch.setattr(sys, "path", [str(tmp_path / "first"), *sys.path])


def no_numpy(tmp_path, monkeypatch):
    numpy = Path(np.__path__[0]).parent
    if numpy == PACKAGE.parent:
        pytest.skip("where the package is, NumPy is too")
    monkeypatch.setattr(sys, "path", [p for p in sys.path if Path(p).resolve() != numpy])


def broken_numpy(tmp_path, monkeypatch):
    numpy_is(tmp_path, monkeypatch, "raise ImportError('its C part is missing')")


def killed(tmp_path, monkeypatch):
    numpy_is(tmp_path, monkeypatch, "import os; os.kill(os.getpid(), 9)")


def leaves(tmp_path, monkeypatch):
    numpy_is(tmp_path, monkeypatch, "import os; os._exit(3)")


def hangs(tmp_path, monkeypatch):
    monkeypatch.setattr(students, "BEGIN", 0.5)
    monkeypatch.setattr(grading, "BEGIN", 0.5)
    numpy_is(tmp_path, monkeypatch, "import time; time.sleep(1e6)")


def closes_its_pipes(tmp_path, monkeypatch):
    source = "import os, sys; os.close(0); os.close(1); sys.exit('no pipes')"
    numpy_is(tmp_path, monkeypatch, source)


def python_is(monkeypatch, path):
    monkeypatch.setattr(sys, "executable", str(path))


def old_python(tmp_path, monkeypatch):
    (tmp_path / "python").write_text("#!/bin/sh\necho Unknown option: -P >&2\nexit 2\n")
    (tmp_path / "python").chmod(0o755)
    python_is(monkeypatch, tmp_path / "python")


def no_python(tmp_path, monkeypatch):
    python_is(monkeypatch, tmp_path / "python")


def unknown_python(tmp_path, monkeypatch):
    python_is(monkeypatch, "")


def no_worker(tmp_path, monkeypatch):
    start = child.start
    monkeypatch.setattr(child, "start", lambda name, *a, **k: start(f"{name}_gone", *a, **k))
    monkeypatch.setattr(grading, "start", child.start)


def no_room(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "gone"))


def no_process(tmp_path, monkeypatch):
    def refuse(*_, **__):
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(subprocess, "Popen", refuse)


BREAKS = {
    no_numpy: "No module named 'numpy'", broken_numpy: "its C part is missing",
    killed: r"signal 9|exit code -9", leaves: "exit code 3", hangs: "did not begin|exit code -9",
    closes_its_pipes: "no pipes",
    old_python: "Unknown option: -P", no_python: "cannot be started", unknown_python: "",
    no_worker: "_gone", no_room: "gone", no_process: "temporarily unavailable",
}


@pytest.mark.parametrize("way", BREAKS)
def test_a_judge_that_cannot_begin_stops_and_blames_nobody(ex, tmp_path, monkeypatch, way):
    ex("init", "mine", "--only", "02")
    (tmp_path / "class" / "ann").mkdir(parents=True)
    for folder in ("mine", "class/ann"):
        (tmp_path / folder / UNBROADCAST.name).write_text(RIGHT)
    before = (tmp_path / "mine" / desk.PROGRESS).read_bytes()
    way(tmp_path, monkeypatch)
    monkeypatch.chdir("mine")
    for words in (["check", "02"], ["grade", "../class", "--only", "02", "--csv", "points.csv"]):
        said = ex(*words, code=2)
        assert "the judge cannot run exercises" in said and "No file was judged" in said, said
        assert re.search(BREAKS[way], said), said
        assert "0 of" not in said and "Traceback" not in said
    assert (tmp_path / "mine" / desk.PROGRESS).read_bytes() == before
    assert not (tmp_path / "mine" / "points.csv").exists()
    assert not [*(tmp_path / "mine").rglob(".minilora-grades/*.jsonl")]


def test_a_student_without_memory_to_begin_is_not_blamed(tmp_path):
    tiny = Limits(memory=1 << 20)
    with pytest.raises(child.Fault, match="the limit of memory, 1 MiB, is too little to begin"):
        judge.judge(UNBROADCAST, RIGHT, limits=tiny)
    (tmp_path / "ann-ex02.py").write_text(RIGHT)
    with pytest.raises(child.Fault, match="too little to begin"):  # said by a process of a process
        grading.grade(tmp_path, only=["02"], limits=tiny, say=str)


def own_exercise(tmp_path, monkeypatch, above):
    (tmp_path / "ex90_own.py").write_text(
        UNBROADCAST.path.read_text("utf-8").replace("import numpy", f"{above}\nimport numpy", 1)
    )
    monkeypatch.setenv(book.OWN, str(tmp_path))
    return book.exercise("90")


def test_what_an_exercise_prints_is_no_answer_and_what_it_cannot_import_is_named(
    tmp_path, monkeypatch
):
    assert judge.judge(own_exercise(tmp_path, monkeypatch, "print('noise')"), RIGHT).passed
    book.exercise.cache_clear()
    book._module.cache_clear()
    with pytest.raises(ValueError, match=r"ex90_own.py cannot be read.*'gone_module'"):
        own_exercise(tmp_path, monkeypatch, "import gone_module")


def test_the_processes_import_what_their_parent_imports(tmp_path, monkeypatch):
    site = Path(np.__path__[0]).parent
    for name in ("numpy", "numpy.libs"):
        if (site / name).exists():
            (tmp_path / name).symlink_to(site / name)
    elsewhere = [p for p in sys.path if Path(p).resolve() != site]
    monkeypatch.setattr(sys, "path", [*elsewhere, str(tmp_path)])
    assert judge.judge(UNBROADCAST, RIGHT).passed


def test_the_processes_compute_as_their_parent(tmp_path, monkeypatch):
    for name in ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "MKL_CBWR", "PYTHONPATH"):
        monkeypatch.setenv(name, "x")
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "7")
    given = child.environment(tmp_path)
    assert {given[name] for name in ("OPENBLAS_CORETYPE", "NPY_DISABLE_CPU_FEATURES", "MKL_CBWR")
            } == {"x"}
    assert given["OPENBLAS_NUM_THREADS"] == "1" and "PYTHONPATH" not in given


@pytest.mark.parametrize("kernel", ["Haswell", "Nehalem"])
def test_a_students_process_has_its_parents_blas_kernel(monkeypatch, kernel):
    monkeypatch.setenv("OPENBLAS_CORETYPE", kernel)
    monkeypatch.setenv("OPENBLAS_VERBOSE", "2")  # then OpenBLAS names its kernel
    ours = subprocess.run([sys.executable, "-c", "import numpy"], capture_output=True, check=True)
    student = Remote(UNBROADCAST, RIGHT)
    student._words.seek(0)
    theirs = student._words.read()
    student.close()
    core = rb"Core: (\w+)"
    assert re.findall(core, theirs) == re.findall(core, ours.stderr)
    if not re.findall(core, theirs):
        pytest.skip("this NumPy does not say which kernel it uses")


# limits


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("print('x' * 3_000_000)", "printed more than 1 MiB"),
        ("for _ in range(99): print('x' * 30_000)", "printed more than 1 MiB"),
        ("np.ones((1 << 30, 8))", "needs more memory than 2 GiB"),
        ("bytearray(3 << 30)", "needs more memory than 2 GiB"),
        ("return unbroadcast(g, shape)", "deeper than 1000 calls"),
        ("return np.zeros(10**6)", "returned more than 4 MiB"),
        ("return [open(__file__) for _ in range(99)]", "more than 64 files open"),
        ("import time; time.sleep(9)", "within 0.5 seconds, the limit: does it sleep"),
        ("while True: pass", "within 0.25 seconds of processor time, the limit of one call"),
    ],
)
def test_a_limit_is_named_with_its_value(body, words):
    source = RIGHT.replace(RULE, f"    {body}\n{RULE}")
    limits = Limits(seconds=0.25, wait=0.5 if "sleep" in body else 60.0)
    (first,) = judge.judge(klass.brief(checks=1), source, limits=limits).outcomes
    assert words in first.lines[0] and "limit" in first.lines[0], first.lines
    assert first.kind in ("limit", "halted") and "raised" not in first.lines[0]


@pytest.mark.thorough
def test_the_limit_of_the_processor_is_named():
    body = RIGHT.replace(RULE, f"    while True: pass\n{RULE}")
    limits = Limits(cpu=1, seconds=60.0)
    (first,) = judge.judge(klass.brief(checks=1), body, limits=limits).outcomes
    assert first.lines == ("it used more than 1 seconds of processor time, the limit of all calls",)


SHORT = Limits(seconds=0.2, cpu=1)  # of the processor


def pauses(monkeypatch):
    """Before one call, the process of the student gets no processor for longer than SHORT."""
    call, paused = Remote._call, []

    def busy(self, name, args):
        if not paused:
            paused.append(self._process.pid)
            os.kill(paused[0], signal.SIGSTOP)
            threading.Timer(1.5, os.kill, (paused[0], signal.SIGCONT)).start()
        return call(self, name, args)

    monkeypatch.setattr(Remote, "_call", busy)


@pytest.mark.skipif(not hasattr(signal, "SIGSTOP"), reason="no process can be paused here")
@pytest.mark.parametrize("when", [
    "a call", *(pytest.param(x, marks=pytest.mark.thorough) for x in ("each call", "loading"))])
def test_a_right_file_on_a_busy_machine_loses_no_points(monkeypatch, when):
    wait, source = "import time; time.sleep({})", RIGHT
    if when == "a call":
        pauses(monkeypatch)
    elif when == "each call":
        source = RIGHT.replace(RULE, f"    {wait.format(0.1)}\n{RULE}")
    else:
        source += wait.format(1.5)
    start = time.monotonic()
    assert judge.judge(klass.brief(checks=2), source, limits=SHORT).points == 6
    assert time.monotonic() - start > SHORT.cpu > SHORT.seconds


def test_the_limits_by_the_clock_are_much_longer():
    assert LIMITS.wait >= 10 * LIMITS.seconds and LIMITS.total >= 10 * LIMITS.cpu


# one reader, however a function is bound

ENCODINGS = {
    "plain": lambda s: s.encode(), "a mark": lambda s: s.encode("utf-8-sig"),
    "CRLF": lambda s: s.replace("\n", "\r\n").encode(),
    "CR": lambda s: s.replace("\n", "\r").encode(),
    "a mark and CRLF": lambda s: s.replace("\n", "\r\n").encode("utf-8-sig"),
}


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\ufeff")))
@pytest.mark.parametrize("how", ENCODINGS)
def test_a_text_is_read_alike_whatever_its_encoding(tmp_path, how, content):
    (tmp_path / "text").write_bytes(ENCODINGS[how](content))
    assert text.read(tmp_path / "text") == content


@pytest.mark.parametrize("how", ENCODINGS)
def test_every_reader_of_a_students_file_is_that_one(tmp_path, monkeypatch, how):
    place, _ = desk.begin(tmp_path, 0, ["02", "10"])
    for of in place.exercises():
        place.file(of).write_bytes(ENCODINGS[how](of.solution()))
    assert place.source(UNBROADCAST) == RIGHT == submissions.read(place.file(UNBROADCAST))[0]
    seen = []
    monkeypatch.setattr(milestones, "milestone", lambda _, sources: seen.append(sources) or 1 / 0)
    monkeypatch.setattr(sys, "argv", ["", "10", str(tmp_path)])
    with pytest.raises(SystemExit):
        milestones.main()
    assert seen[0]["02"] == RIGHT
    number = f"{91 + [*ENCODINGS].index(how)}"  # book keeps what it has read
    content = ENCODINGS[how](UNBROADCAST.path.read_text("utf-8"))
    (tmp_path / f"ex{number}_own.py").write_bytes(content)
    monkeypatch.setenv(book.OWN, str(tmp_path))
    assert book.exercise(number).solution() == RIGHT
    from minilora.cli import inputs

    assert inputs.text(str(place.file(UNBROADCAST))) == RIGHT


@pytest.mark.parametrize("kind", ["folder", "pipe", "large", "none", "UTF-16"])
def test_a_file_that_is_no_text_is_named_by_each_reader(tmp_path, kind):
    place, (file,) = desk.begin(tmp_path, 0, ["02"])
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind != "none":
        file.write_bytes(b"x" * (2 << 20) if kind == "large" else "x".encode("utf-16"))
    words = {"folder": "not a regular file", "pipe": "not a regular file", "none": "is missing",
             "large": "larger than 1 MiB", "UTF-16": "not UTF-8 text"}[kind]
    with pytest.raises(ValueError, match=rf"{words}.*minilora ex reset 02"):
        place.source(UNBROADCAST)
    assert words in submissions.read(file)[1][1]


BOUND = {
    "lambda": "mine = unbroadcast\nunbroadcast = lambda g, shape: mine(g, shape)",
    "alias": "mine = unbroadcast\ndel unbroadcast\nunbroadcast = mine",
    "walrus": "mine = unbroadcast\ndel unbroadcast\n(unbroadcast := mine)",
    "partial": "import functools\nunbroadcast = functools.partial(unbroadcast)",
    "object": "class F:\n    def __init__(self, f): self.f = f\n"
              "    def __call__(self, g, shape): return self.f(g, shape)\n"
              "unbroadcast = F(unbroadcast)",
    "globals": "mine = unbroadcast\ndel unbroadcast\nglobals().update(unbroadcast=mine)",
    "try": None, "if": None, "for": None,
}


@pytest.mark.parametrize("how", BOUND)
def test_a_function_counts_however_it_is_bound(how):
    source = f"{RIGHT}\n{BOUND[how]}\n"
    if BOUND[how] is None:
        head, start, rest = RIGHT.partition("def unbroadcast")
        inner = (start + rest).replace("\n", "\n    ")
        block, end = {"try": ("try:", "finally:\n    pass"), "if": ("if True:", ""),
                      "for": ("for _ in [0]:", "")}[how]
        source = f"{head}{block}\n    {inner.rstrip()}\n{end}\n"
    assert judge.judge(klass.brief(checks=2), source).passed


@pytest.mark.parametrize("source", ["", "unbroadcast = 3", "def f(): pass"])
def test_a_missing_function_is_named_after_the_file_was_run(source):
    (line, remedy) = judge.judge(UNBROADCAST, source).outcomes[0].lines
    assert line == "the file has no function unbroadcast" and "ex reset 02" in remedy


# the student's folder


def test_status_says_what_a_passed_file_does_now(ex, tmp_path):
    ex("init", "--only", "02")
    file = tmp_path / "exercises" / UNBROADCAST.name
    for source, points, words in (
        (RIGHT, 10, "passed\n"), (RIGHT.replace("keepdims=True", ""), 4, "now 4 of 10 points\n"),
        (UNBROADCAST.stub(), 0, "now its file is the stub\n"), ("x = (", 0, "now 0 of 10"),
        (RIGHT, 10, "passed\n"),
    ):
        file.write_text(source)
        if points == 10:
            ex("check", "02")
        status = ex("status")
        assert words in status and ("passed before;" in status) == (points < 10), status
        assert "10 of 10 points" in status.splitlines()[1]  # what was earned stays
    file.unlink()
    assert "passed before; now its file is missing" in ex("status")


@pytest.mark.thorough
def test_check_without_a_number_checks_all(ex, tmp_path):
    ex("init", "--only", "01,02,05,10")
    folder = tmp_path / "exercises"
    (folder / UNBROADCAST.name).write_text(RIGHT)
    (folder / book.exercise("05").name).unlink()
    (folder / book.exercise("10").name).write_text("x = (")
    said = ex("check", code=1)
    assert "01 gradients" in said and "not begun" in said and "02 un-broadcast: 10 of 10" in said
    assert "is missing" in said and "Python cannot read the file" in said
    assert said.endswith("1 of 4 exercises pass\n")
    ex("init", "course", "--only", "02")
    (tmp_path / "course" / UNBROADCAST.name).write_text(RIGHT)
    os.chdir("course")
    assert "1 of 1 exercises pass" in ex("check")


def test_commands_at_the_same_time_lose_no_progress(tmp_path):
    numbers = ["01", "02", "03", "04"]
    place, _ = desk.begin(tmp_path, 0, numbers)

    def hints(number):
        for _ in range(5):
            place.update(number, lambda before: replace(before, hints=before.hints + 1))

    threads = [threading.Thread(target=hints, args=(number,)) for number in numbers * 2]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [desk.find(tmp_path).of(number).hints for number in numbers] == [10] * 4


def test_check_takes_a_seed(ex, tmp_path, monkeypatch):
    ex("init", "--only", "02")
    seeds, one = [], judge.judge

    def seen(of, source, *, seed):
        seeds.append(seed)
        return one(klass.brief(checks=1), RIGHT, seed=seed)

    monkeypatch.setattr(judge, "judge", seen)
    monkeypatch.setattr(soundness, "assure", lambda *_, **__: None)
    ex("check", "02", "--seed", "5")
    ex("check", "02")
    assert seeds == [5, 0]


@pytest.mark.parametrize("command", ["grade", "check", "hint", "init"])
def test_the_help_of_a_command_is_about_that_command(command, capsys):
    from minilora import cli

    with pytest.raises(SystemExit):
        cli.main(["ex", command, "--help"])
    said = capsys.readouterr().out
    assert ("--gradescope" in said, "--list" in said) == (command == "grade",) * 2
    assert "--backend" not in said and "--give-up" not in said and "--plain" not in said
    assert ("--seed" in said) == (command != "hint")


VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-3, 3), st.floats(), st.text(max_size=3),
    st.lists(st.integers(0, 1), max_size=2), st.dictionaries(st.text(max_size=2), st.none()),
)


@given(st.data())
def test_a_progress_file_of_wrong_types_is_damaged(tmp_path, data):
    valid = {"course": ["02"], "seed": 1, "progress": {"02": {
        "points": 3, "passed": False, "hints": 1, "given_up": False, "now": 3, "checked": "ab"}}}
    places = [(), ("course",), ("course", 0), ("seed",), ("progress",), ("progress", "02"),
              *(("progress", "02", name) for name in valid["progress"]["02"])]
    *path, last = data.draw(st.sampled_from(places[1:]))
    at = functools.reduce(lambda value, key: value[key], path, valid)
    old, at[last] = at[last], data.draw(VALUES)
    (tmp_path / desk.PROGRESS).write_text(json.dumps(valid))
    fits = type(at[last]) is type(old) and at[last] not in (-1, -2, -3)
    try:
        found = desk.find(tmp_path)
    except ValueError as error:
        assert "is damaged" in str(error) and "minilora ex init" in str(error)
        assert not fits or isinstance(old, list | dict) or last == 0
    else:
        assert fits and desk.begin(tmp_path, 0)[0].progress == found.progress


def test_no_home_folder_is_needed(tmp_path, monkeypatch):
    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache.folder("site") == Path(tempfile.gettempdir()) / "minilora" / "site"
    users = [path.name for path in PACKAGE.rglob("*.py")
             if re.search(r"Path\.home|expanduser", path.read_text("utf-8"))]
    assert sorted(users) == ["cache.py", "publish.py"]  # the second makes a home for Jupyter


@pytest.mark.thorough
def test_optimized_python_judges_alike_and_leaves_nothing_in_the_folder(tmp_path):
    desk.begin(tmp_path, 0, ["02", "09"])
    for of in map(book.exercise, ("02", "09")):
        (tmp_path / of.name).write_text(of.solution())
    env = {name: value for name, value in os.environ.items() if "PYTHON" not in name}
    where = {"PYTHONPATH": str(PACKAGE.parent), "XDG_CACHE_HOME": str(tmp_path.parent)}
    code = "import sys; from minilora import cli; sys.exit(cli.main(['ex', 'check']))"
    done = subprocess.run([sys.executable, "-OO", "-c", code], cwd=tmp_path, env=env | where,
                          capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "2 of 2 exercises pass" in done.stdout, done.stderr
    for check in UNBROADCAST.checks:
        assert check.title in done.stdout
    assert {path.name for path in tmp_path.iterdir()} == {
        desk.PROGRESS, UNBROADCAST.name, book.exercise("09").name}


# points and messages


def costs(of, functions):
    student = Local(of, functions)
    return [one.points - judge.attempt(of, one, student, 0, False).points for one in of.checks]


@pytest.mark.parametrize("number", [
    "02", *(pytest.param(n, marks=pytest.mark.thorough) for n in ("01", "04", "05", "10", "11"))
])
def test_a_changed_argument_costs_one_check(number):
    """In each function that takes an array: whatever else it is called for is right."""
    of = book.exercise(number)

    def changing(name):
        def call(*args):
            value = of.reference[name](*args)
            for i, array in enumerate(args):
                free = of.argument(name, i) not in of.in_place.get(name, ())
                if isinstance(array, np.ndarray) and array.dtype.kind == "f" and free:
                    if any(array is one for one in (value if type(value) is tuple else (value,))):
                        value = tuple(one.copy() for one in value)
                    array += 1.0
                    break
            return value

        return call

    for name in of.functions:
        failed = [cost for cost in costs(of, {**of.reference, name: changing(name)}) if cost]
        assert len(failed) <= 1, (name, failed)


def test_one_mistake_in_02_costs_the_checks_that_are_about_it():
    summed = UNBROADCAST.wrong["unbroadcast"]
    about = {how: costs(UNBROADCAST, {"unbroadcast": f}) for how, f in summed.items()}
    assert about["you sum the repeated axes without keepdims=True"] == [0, 3, 3, 0]
    assert about["you sum the new axes in front, but not the repeated ones"] == [0, 3, 3, 0]
    assert about["you convert float64 to float32"] == [0, 0, 0, 1]
    assert about["you return float64 for any dtype of g"] == [0, 0, 0, 1]
    assert about["you change g in place"] == [3, 0, 0, 0]


def test_the_case_that_is_shown_lets_the_difference_be_seen():
    of = book.exercise("05")
    (low,) = (f for how, f in of.wrong["causal_attention"].items() if "such as -10" in how)
    outcome = judge.judge_here(of, {"causal_attention": low}).outcomes[0]
    values = [np.array(json.loads(re.sub(r"\.(?=[,\]\s])", ".0", line.partition("= ")[2])))
              for line in outcome.lines[:2]]
    assert np.abs(values[0] - values[1]).max() > 0.04 * np.abs(values[0]).max()
    assert outcome.mistakes and "-np.inf" in outcome.mistakes[0]


def test_a_process_ends_with_its_student():
    student = Remote(UNBROADCAST, klass.answer("return g"))
    folder = student._folder
    student.close()
    assert student._words.closed and not folder.exists()
