"""Exercises checked in this process: the same verdicts as in a process of their own."""

import re

import pytest

from minilora.exercises import book, here, judge, report

pytestmark = pytest.mark.usefixtures("numpy_only")
DEPTH = re.compile(r"than \d+ calls")  # under pytest there are more of them already
START = "import numpy as np\n\ndef unbroadcast(g, shape):\n"


@pytest.mark.parametrize(("source", "words"), [
    ("x = (1\n", "'(' was never closed\n      at ex02_unbroadcast.py, line 1: x = (1"),
    (START.replace("cast(", "(") + "    return 1\n", "the file has no function unbroadcast"),
    ("raise KeyError(3)\n", "loading the file raised KeyError: 3"),
    ("import sys\nsys.exit(3)\n", "loading the file raised SystemExit: 3"),
    ("import pandas\n", "line 1 imports pandas: use only NumPy and Python's standard library"),
    (START + "    return unbroadcast(g, shape)\n", "the function calls itself without end"),
    (START + "    return\n", "got      None: is there a `return`?"),
    (START + "    raise SystemExit\n", "your code raised SystemExit"),
    (START + "    print('hello', g.shape)\n    return g.sum(axis=9)\n",
     "line 5, in unbroadcast: return g.sum(axis=9)\n"),
])
def test_what_is_wrong_is_said_as_in_another_process(source, words):
    text, passed = here.check("02", source)
    assert not passed and words in text and "minilora ex" not in text
    other = report.verdict(judge.judge(book.exercise("02"), source))
    same = [line for line in other.splitlines() if "minilora ex " not in line]
    assert DEPTH.sub("", text).splitlines() == [DEPTH.sub("", line) for line in same]


def test_what_is_printed_is_kept_up_to_a_limit(capsys):
    source = START + "    print('hello')\n    print('x' * 10**6)\n    return 1\n"
    one = here.Here(book.exercise("02"), source)
    for _ in range(3):
        assert one.unbroadcast(2, ()) == 1
    assert one.printed().startswith("hello\nxxx") and len(one.printed()) == here.MOST
    assert not capsys.readouterr().out
