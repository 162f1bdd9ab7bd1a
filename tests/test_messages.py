"""The error after a mistake: one plain sentence that names the argument (tests/messages.py)."""

import re

import messages
import pytest

FOREIGN = re.compile(  # words of an error that is not ours
    r"Traceback|NoneType|object has no attribute|unexpected keyword|positional argument|subscript"
    r"|not iterable|unhashable|allow_pickle|codec|Errno|save_every|accumulation|numpy\.|\\x|  "
)


pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture(scope="module", autouse=True)
def folder():
    with messages.somewhere():
        yield


def test_there_are_many_mistakes():
    assert len(messages.PYTHON) >= 70


@pytest.mark.parametrize("line", messages.PYTHON)
def test_a_mistake_in_python_raises_one_plain_sentence(line):
    kind, _, words = messages.error_of(line).partition(": ")
    assert kind in {"ValueError", "TypeError", "KeyError", "RuntimeError", "FloatingPointError",
                    "AxisError"}
    assert messages.PYTHON[line] in words
    assert not FOREIGN.search(words) and "\n" not in words and len(words) < 330
