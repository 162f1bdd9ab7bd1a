"""Milestones: the student's functions really run the engine, and what is wrong with them shows."""

import re
import sys

import pytest

pytest.importorskip("hypothesis")

from minilora.exercises import book, milestones

LIE = {  # of a milestone: in a solution, what is right, and what is not
    "05": ("05", "math.sqrt(size)", "size"),
    "08": ("06", "(alpha / r)", "alpha"),
    "10": ("10", "p - lr * m_hat", "p - 2 * lr * m_hat"),
}


pytestmark = pytest.mark.usefixtures("numpy_only")  # what students write is NumPy's


@pytest.fixture(autouse=True)
def few_steps(monkeypatch):
    monkeypatch.setattr(milestones, "STEPS", 2)


def solutions(after):
    return {n: book.exercise(n).solution() for n in book.MILESTONES[after]}


@pytest.mark.parametrize("after", book.MILESTONES)
def test_right_functions_train_as_the_engine_does(after):
    shown = milestones.milestone(after, solutions(after))
    told = "\n".join(shown.lines)
    assert "the first gaps are rounding" in told and "more than rounding" not in told
    if after == "08":
        assert "bit for bit in 16 of 16" in told and "rounding bound: 0 of" in told
    if after == "10":
        pairs = re.findall(r"(?:full|LoRA) ([\d,]+) and ([\d,]+)(?:;|$)", told)
        assert len(pairs) == 2 and all(mine == engine for mine, engine in pairs), told


@pytest.mark.parametrize("after", LIE)
def test_a_wrong_function_is_seen_to_train_otherwise(after):
    sources, (number, right, wrong) = solutions(after), LIE[after]
    assert right in sources[number]
    sources[number] = sources[number].replace(right, wrong)
    assert "more than rounding" in "\n".join(milestones.milestone(after, sources).lines)


def test_what_is_missing_is_named():
    with pytest.raises(ValueError, match="unknown milestone 06: choose one of 05, 08, 10"):
        milestones.milestone("06", {})
    with pytest.raises(ValueError, match="exercise 04 is missing"):
        milestones.milestone("05", {"05": ""})


def test_the_command_draws_and_says_whose_line_was_wrong(tmp_path, monkeypatch, capsys):
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
