"""Milestones: the student's functions run in the engine, and a wrong one is noticed."""

import re
import sys

import pytest

pytest.importorskip("hypothesis")

from minilora.exercises import book, milestones

WRONG = {  # milestone -> (exercise, a right expression of its solution, a wrong one)
    "05": ("05", "math.sqrt(size)", "size"),
    "08": ("06", "(alpha / r)", "alpha"),
    "10": ("10", "p - lr * m_hat", "p - 2 * lr * m_hat"),
}

pytestmark = pytest.mark.usefixtures("numpy_only")  # students write NumPy code


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(milestones, "STEPS", 2)


def solutions(after):
    return {n: book.exercise(n).solution() for n in book.MILESTONES[after]}


@pytest.mark.parametrize("after", book.MILESTONES)
def test_right_functions_train_as_the_engine_does(after):
    text = "\n".join(milestones.milestone(after, solutions(after)).lines)
    assert "the first gaps are rounding" in text and "more than rounding" not in text
    if after == "08":
        assert "bit for bit in 16 of 16" in text and "rounding bound: 0 of" in text
    if after == "10":
        pairs = re.findall(r"(?:full|LoRA) ([\d,]+) and ([\d,]+)(?:;|$)", text)
        assert len(pairs) == 2 and all(mine == engine for mine, engine in pairs), text


@pytest.mark.parametrize("after", WRONG)
def test_a_wrong_function_is_noticed(after):
    sources, (number, right, wrong) = solutions(after), WRONG[after]
    assert right in sources[number]
    sources[number] = sources[number].replace(right, wrong)
    assert "more than rounding" in "\n".join(milestones.milestone(after, sources).lines)


def test_a_missing_exercise_is_named():
    with pytest.raises(ValueError, match="unknown milestone 06: choose one of 05, 08, 10"):
        milestones.milestone("06", {})
    with pytest.raises(ValueError, match="exercise 04 is missing"):
        milestones.milestone("05", {"05": ""})


def test_the_command_saves_a_figure_and_names_the_line_of_an_error(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    (tmp_path / "ex10_adam.py").write_text(solutions("10")["10"], "utf-8")
    monkeypatch.setattr(sys, "argv", ["", "10", str(tmp_path)])
    monkeypatch.setenv("MPLBACKEND", "Agg")
    milestones.main()
    assert "milestone 10: your adam_step" in capsys.readouterr().out
    assert (tmp_path / "milestone_10.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "ex10_adam.py").write_text(book.exercise("10").stub(), "utf-8")
    words = r"milestone 10: ex10_adam.py, line \d+, in adam_step: not written yet"
    with pytest.raises(SystemExit, match=words):
        milestones.main()
