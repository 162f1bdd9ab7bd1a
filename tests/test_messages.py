"""What is said to a mistake: one plain sentence that names the thing (tests/messages.py)."""

import re

import messages
import pytest

FOREIGN = re.compile(  # what is no sentence of ours
    r"Traceback|NoneType|object has no attribute|unexpected keyword|positional argument|subscript"
    r"|not iterable|unhashable|allow_pickle|codec|Errno|save_every|accumulation|numpy\.|\\x|  "
)


pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture(scope="module", autouse=True)
def folder():
    with messages.somewhere():
        yield


def test_there_are_as_many_as_people_make():
    assert len(messages.PYTHON) >= 70


@pytest.mark.parametrize("typed", messages.PYTHON)
def test_a_mistake_in_python_is_told_in_a_sentence(typed):
    said = messages.said(typed)
    kind, _, words = said.partition(": ")
    assert kind in {"ValueError", "TypeError", "KeyError", "RuntimeError", "FloatingPointError",
                    "AxisError"}
    assert messages.PYTHON[typed] in words
    assert not FOREIGN.search(words) and "\n" not in words and len(words) < 330
