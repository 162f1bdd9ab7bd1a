"""The exercises: each satisfies its rules; the commands of students and teachers work."""

import re
import sys

import klass
import numpy as np
import pytest
from conftest import kept

from minilora import cli
from minilora.exercises import book, desk, dev, kit, report, wire
from minilora.exercises.judge import judge, judge_here
from minilora.exercises.student import Limits
from minilora.site import guide

pytestmark = pytest.mark.usefixtures("numpy_only")
EXERCISES = pytest.mark.parametrize("number", book.paths())
SOON = Limits(seconds=0.15)


def answer(body: str, number: str = "02") -> str:
    """The stub with this body of the first function."""
    return book.exercise(number).stub().replace(book.TODO, body, 1)


def verdict_text(body: str, of=None, **options) -> str:
    verdict = judge(of or book.exercise("02"), answer(body), limits=SOON)
    return report.verdict(verdict, **options)


@pytest.mark.parametrize("number", kept(book.paths(), "01", "05", "12"))
@pytest.mark.parametrize("names", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_an_exercise_has_no_fault(number, names):
    """The solution passes, the stub fails every check, known mistakes fail. The thorough run tries
    all mistakes, and tests that the verdict names them; `minilora ex dev check` does it under many
    seeds."""
    assert [*dev.complaints(book.exercise(number), names=names, seeds=1)] == []


@EXERCISES
def test_its_numbers_agree(number):
    of = book.exercise(number)
    assert of.statement.startswith(f"{number}. ")
    assert of.chapter in {path.name[:2] for path in chapters()} | {""}
    assert of.points == 10 and 5 <= of.minutes <= 90


def chapters():
    from minilora import site

    return [chapter.path for chapter in site.chapters()]


def test_the_faults_of_an_exercise_are_named(monkeypatch):
    from dataclasses import replace

    monkeypatch.setattr(dev, "SEEDS", 1)
    of = klass.brief()
    right = of.reference["unbroadcast"]
    bad = replace(
        of, hints=of.hints[:2], given=of.given.replace("[5.0,", "[6.0,"),
        wrong={"unbroadcast": {"it is right": right, "a": lambda g, s: -g, "b": lambda g, s: -g}},
    )
    text = "\n".join(dev.complaints(bad))
    assert "2 hints, not 3" in text and "3 known mistakes" in text
    assert "example is wrong" in text and "a known mistake passes: it is right" in text
    assert "for a known mistake: a" not in text  # two mistakes that behave alike are both named
    lazy = replace(of, checks=of.checks[:1], given=of.given.replace("g.ndim - len(shape)", "1"))
    assert "the solution fails under seed 0" in "\n".join(dev.complaints(lazy, names=False))


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return None", "got      None: is there a `return`?"),
        ("return [1.0]", "got      a value of type list: [1]"),
        ("return object()", "a value of type object"),
        ("return g.sum(", "Python cannot read the file: '(' was never closed"),
        ("return g @ shape @ g", "your code raised"),
        ("g *= 0; return g", "expected unbroadcast not to change its arguments"),
        ("while True: pass", "did not end within 0.15 seconds of processor time"),
        ("import os; os._exit(3)", "ended with exit code 3"),
        ("return unbroadcast(g, shape)", "the function calls itself without end"),
        ("return np.random.normal(size=shape)", "expected the gradient"),
        ("return np.full(shape, np.nan)", "gap      not finite"),
        ("import torch; return g", "imports torch: use only NumPy and Python's standard library"),
        ("import sys; sys.exit(0)", "raised SystemExit"),
        (book.TODO, "unbroadcast is not written yet"),
    ],
)
def test_each_failure_has_its_own_message(body, words):
    text = verdict_text(body, klass.brief())
    assert words in text and "0 of 10 points" in text.splitlines()[0]
    assert "Traceback" not in text and "minilora/" not in text  # the student's frames only
    if "raised" in words and "System" not in words:
        assert re.search(r"at ex02_unbroadcast.py, line \d+, in unbroadcast: return g @", text)


CASE = "W, A, B = np.eye(2), np.ones((1, 2)), np.ones((2, 1)); "


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (CASE + "return (merge(W, A, B, 3) == W + 3).all()", "which has no meaning: assert it"),
        (CASE + "assert (W == np.eye(2)).all()", "does not call its argument `merge`"),
        (CASE + "merge(W, B, A, 3)", "calls merge with W (2, 2), A (2, 1), B (1, 2)"),
        (CASE + "assert (merge(W, W[:1], W, 3) == W).all()", "A (1, 2), B (2, 2): it takes W (d,"),
        ("assert merge([[1]], [[1]], [[1]], 1) == 2", "calls merge with W list, A list, B list"),
        ("W, A, B = (np.random.default_rng(0).normal(size=(9, 9)) for _ in 'WAB')\n"
         "    assert (merge(W, A, B, 3.3) == (3 * W + 1.1 * (B @ A)) / 3).all()",
         "do you allow for rounding?"),
        ("W, A, B = (np.random.default_rng(0).normal(size=(9, 9)) for _ in 'WAB')\n"
         "    assert (merge(W, A, B, 3.3) == W + 3.3 / 9 * B @ A).all()",
         "do you allow for rounding?"),
        (CASE + "assert merge(W, A, B, 3)[0, 0] == 4, mistyped", "NameError"),
    ],
)
def test_a_property_test_that_finds_nothing_gets_the_reason(body, words):
    verdict = judge(klass.brief("09", 1), answer(body, "09"), limits=SOON)
    assert words in report.verdict(verdict), report.verdict(verdict)


def test_a_missing_function_is_named():
    source = book.exercise("02").solution().replace("def unbroadcast", "def unbroadcats")
    (line, *_) = judge(book.exercise("02"), source).outcomes[0].lines
    assert line == "the file has no function unbroadcast"


def test_a_right_answer_written_differently_passes():
    body = (
        "while g.ndim > len(shape): g = np.add.reduce(g)\n"
        "    for i, size in enumerate(shape):\n"
        "        if size == 1: g = np.add.reduce(g, axis=i, keepdims=True)\n"
        "    return g.copy()"
    )
    verdict = judge(book.exercise("02"), answer(body), seed=7)
    assert verdict.passed and verdict.mistakes == ()


def test_two_mistakes_at_once_are_not_guessed_at():
    text = verdict_text("return g.mean(axis=tuple(range(g.ndim - len(shape))))", verbose=True)
    assert "1 of 10" in text and "what you get if" not in text
    once = verdict_text("return g.sum(axis=tuple(range(g.ndim - len(shape))))")
    assert "if you sum the new axes in front, but not the repeated ones" in once
    assert "4 of 10 points" in once


def test_what_a_student_prints_is_shown_and_marks_can_be_ascii():
    text = verdict_text("print('here', shape); return g", unicode=False)
    assert "your code printed in the smallest case:\n    | here (" in text and text.isascii()
    assert text.count("| here") == 1  # the output in the smallest case only
    lines = "for i in range(5): print('here', i)\n    return g.sum(axis=0)"
    assert "in the smallest case:" in verdict_text(lines)
    passes = verdict_text("print('here'); " + "return 0 * g + g if g.shape == shape else None")
    assert "your code printed" in passes


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ("return np.zeros(2, 3)", "as a tuple"), ("return g if np.ones(2) == 1 else g", ".all()"),
        ("return np.ones((2, 3)) @ np.ones((2, 3))", "as many columns"),
        ("def f(): g = g + 1\n    f()", "another name"),
    ],
)
def test_an_error_of_python_has_a_remedy(body, words):
    lines = verdict_text(body, klass.brief()).splitlines()
    (at,) = (i for i, line in enumerate(lines) if "your code raised" in line)
    assert words in lines[at + 1]


def test_an_option_shows_all_failures():
    body = "return g.sum(axis=tuple(range(g.ndim - len(shape))))"
    assert "to see all: minilora ex check 02 -v" in verdict_text(body)
    assert "-v" not in verdict_text(body, verbose=True) and "-v" not in verdict_text(book.TODO)


def test_a_mistake_is_named_while_another_function_is_not_written_yet():
    of = book.exercise("08")
    source = of.stub().replace(book.TODO, "return W + alpha * (B @ A)", 1)
    (mistake,) = judge(of, source).mistakes
    assert mistake == "you scale by alpha, not by alpha / r"


def test_a_transpose_and_a_dtype_are_named():
    of = book.exercise("08")
    right = of.reference["merge"]
    with pytest.raises(kit.Wrong, match="is the transpose of the expected"):
        kit.equal(np.array([[1.0, 2.0], [3.0, 4.0]]).T, np.array([[1.0, 2.0], [3.0, 4.0]]))
    wide = {**of.reference, "merge": lambda *args: np.float64(right(*args))}
    assert "] in float32" in report.verdict(judge_here(of, wide))


def test_the_same_seed_is_the_same_verdict_and_another_draws_other_cases():
    of, source = klass.brief(checks=2), answer("return g + 1")
    one, two = (judge(of, source, seed=1) for _ in range(2))
    assert report.verdict(one) == report.verdict(two)
    one, other = (judge_here(of, of.reference, seed=s) for s in (1, 2))
    drawn = [[str(one.case) for o in v.outcomes for one in o.trials] for v in (one, other)]
    assert drawn[0] != drawn[1]


def test_messages_carry_values_and_no_code(tmp_path):
    values = [
        None, True, 3, 2.5, "é", np.float32(1.5), np.arange(6.0).reshape(2, 3), np.array(3.0),
        [1, (2, "x")], {"a": np.ones(2, np.float16), 3: None}, np.dtype("float16"),
        np.random.default_rng(3),
    ]
    here, there = (wire.Both(lambda kind, text, calls: wire.Opaque(kind, text)) for _ in "ab")
    with open(tmp_path / "w", "wb") as out:
        wire.send(out, here.pack({"values": [*values, object(), np.array([object()])]}))
    with open(tmp_path / "w", "rb") as source:
        *back, opaque, array = there.unpack(wire.receive(source))["values"]
    for a, b in zip(values, back, strict=True):
        assert type(a) is type(b) and kit.shown(a) == kit.shown(b)
        assert getattr(a, "dtype", None) == getattr(b, "dtype", None)
    assert values[-1].normal() == back[-1].normal()
    assert (opaque.kind, array.kind) == ("object", "ndarray")


# the student's folder and the command line


def test_a_students_commands(ex, tmp_path):
    assert "to start, run minilora ex init" in ex("status", code=2)
    assert "then: minilora ex check" in ex("init")
    file = tmp_path / "exercises" / "ex02_unbroadcast.py"
    assert file.read_text("utf-8") == book.exercise("02").stub()
    assert "not written yet" in ex("check", "2", code=1)
    assert ex("hint", "02").count("\n") == 1 and ex("hint", "02").count("\n") == 2
    assert "opens after a pass" in ex("solution", "02", code=2)
    file.write_text(book.exercise("02").solution(), "utf-8")
    assert "10 of 10 points" in ex("check", "02") and "return g.sum" in ex("solution", "02")
    status = ex("status")
    assert "passed, 2 of 3 hints seen" in status and f"10 of {10 * len(book.paths())}" in status
    assert "your version is in ex02_unbroadcast.py.1" in ex("reset", "02")
    aside = file.with_name("ex02_unbroadcast.py.1")
    assert aside.read_text("utf-8") == book.exercise("02").solution()
    assert "not written yet" in ex("check", "02", code=1)
    assert "passed" in ex("status")  # once is enough
    assert f"10 of {10 * len(book.paths())}" in ex("status")  # and its points stay
    assert ex("hint", "02").endswith("solution 02 shows a solution\n")
    assert "not written yet" in ex("check", "exercises/ex02_unbroadcast.py", code=1)


def test_a_second_init_changes_no_file(ex, tmp_path, monkeypatch):
    ex("init", "mine", "--only", "02")
    (file,) = (tmp_path / "mine").glob("ex*.py")
    file.write_text("my work", "utf-8")
    ex("init", "mine")
    assert file.read_text("utf-8") == "my work"
    assert [*(tmp_path / "mine").glob("ex*.py")] == [file]  # the course is unchanged
    monkeypatch.chdir("mine")
    assert "stays as it is" in ex("init") and not (file.parent / "exercises").exists()


@pytest.mark.parametrize(
    "text", ["", "[]", '{"course": ["02"]}', '{"course": ["7"], "seed": 1, "progress": {}}',
             '{"course": ["02"], "seed": 1, "progress": {"02": {"odd": 1}}}'],
)
def test_a_damaged_progress_file_is_named(ex, tmp_path, text):
    ex("init")
    (tmp_path / "exercises" / desk.PROGRESS).write_text(text)
    assert "is damaged" in ex("status", code=2)


@pytest.mark.parametrize(
    ("data", "words"), [(None, "is missing"), (b"\xff\xfe\x00", "is not UTF-8 text")]
)
def test_an_unreadable_file_is_named_with_a_remedy(ex, tmp_path, data, words):
    ex("init")
    file = tmp_path / "exercises" / "ex02_unbroadcast.py"
    file.unlink() if data is None else file.write_bytes(data)
    text = ex("check", "02", code=2)
    assert words in text and "minilora ex reset 02" in text


def test_watching_yields_a_changed_file(tmp_path, monkeypatch):
    at, _ = desk.begin(tmp_path, 0, ["02"])
    file, writes = tmp_path / "ex02_unbroadcast.py", iter([None, "a", None, "bc"])

    def sleep(_):
        text = next(writes)
        if text:
            file.write_text(text)

    monkeypatch.setattr(desk.time, "sleep", sleep)
    seen = desk.changes(at)
    assert next(seen).number == "02" and next(seen).number == "02"
    assert next(writes, "no more") == "no more"


def test_a_teachers_own_exercises(ex, tmp_path, monkeypatch):
    monkeypatch.setattr(dev, "SEEDS", 1)
    assert "MINILORA_EXERCISES=" in ex("dev", "new", "97_mine")
    assert "exists already" in ex("dev", "new", "97_mine", code=2)
    monkeypatch.setenv(book.OWN, str(tmp_path))
    assert [*book.paths()][-1] == "97"
    text = (tmp_path / "ex97_mine.py").read_text("utf-8") + klass.FEW
    (tmp_path / "ex97_mine.py").write_text(text, "utf-8")
    assert "97 un-broadcast: 4 checks" in ex("dev", "check", "97")
    older = text.replace("from minilora.exercises import kit", "from . import kit")
    assert older != text
    (tmp_path / "ex98_older.py").write_text(older, "utf-8")
    assert book.exercise("98").title == "un-broadcast"
    ex("init", "course", "--only", "97,02")
    assert desk.find(tmp_path / "course").course == ("97", "02")


def test_every_known_mistake_has_its_message(ex, tmp_path, monkeypatch):
    klass.own(tmp_path, "96")
    monkeypatch.setenv(book.OWN, str(tmp_path))
    text = ex("dev", "messages", "96")
    for _, mistake in dev.known(book.exercise("96")):
        assert f"-- {mistake}" in text and f"what you get if {mistake}" in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["hint"], "needs an exercise"), (["check", "77"], "unknown exercise 77"),
        (["status", "02"], "takes no '02'"),
        (["hint", "02", "--jobs", "2"], "has no option --jobs: sweep, reproduce, ex grade have it"),
        (["dev", "odd"], "has no command odd: choose check, messages or new"),
        (["dev", "new", "Bad"], "needs a number and a name"),
        (["chekc"], "chekc: did you mean check?"), (["zz"], "choose init, status"),
        ([], "ex needs a command: init"),
    ],
)
def test_wrong_arguments_are_refused(ex, words, message):
    ex("init")
    assert message in ex(*words, code=2)


def test_without_hypothesis_it_says_what_to_install(ex, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("minilora.exercises")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    assert "pip install '.[exercises]'" in ex("status", code=2)


def test_a_course_fits_into_its_hours_and_the_guide_lists_every_exercise(ex):
    for course in guide.COURSES:
        assert 0.6 * 60 * course.hours <= course.minutes <= 60 * course.hours
    page = ex("teach")
    for of in book.exercises():
        assert f"| {of.number} | {of.title} |" in page
    commands = set(re.findall(r"minilora ex (\w+)", page))
    assert commands <= {*cli.command_line().commands["ex"].commands}
