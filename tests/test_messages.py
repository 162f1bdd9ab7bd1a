"""The error after a mistake: one plain sentence that names the argument (tests/messages.py)."""

import re

import messages
import pytest
import remedies

from minilora.cli import command_line

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
                    "AxisError", "FileNotFoundError"}
    assert messages.PYTHON[line] in words
    assert not FOREIGN.search(words) and "\n" not in words and len(words) < 330


def test_what_a_text_tells_to_type_is_there():
    found = {place: [*remedies.complaints(text)] for place, text in remedies.texts()}
    wrong = {place: words for place, each in found.items()
             if (words := [one for one in each if not one.startswith("ok ")])}
    assert not wrong
    right = [one for each in found.values() for one in each]
    many = {"ok pip install": 12, "ok minilora ": 60, "ok lora.": 20, "ok fit": 3}
    for kind, least in many.items():
        assert sum(one.startswith(kind) for one in right) >= least, kind


def test_an_option_that_a_text_names_is_there():
    expected = {option for parser in command_line().leaves() for option in parser.instead}
    named = {option for place, text in remedies.texts() if place.startswith("cli/")
             for option in remedies.options(text)}
    assert named <= expected | {"--version"}


@pytest.mark.parametrize("text", [
    "pip install 'minilora[viz]'", "pip install 'minilora[{}]'",
    "pip install minilora", "pip install '.[vix]'",
    "see `minilora finetunes --help`", "`minilora ex chek 01`", "minilora generate --resume",
    "minilora ex hint 01 --adapter", "call lora.atach(model)", "use ml.fit(model, epochs=3)",
    "AdamW(parameters, learning_rate=1e-3)", "data.Window(ids, 4, 8)",
])
def test_a_remedy_that_is_not_there_is_found(text):
    assert [one for one in remedies.complaints(text) if not one.startswith("ok ")]
