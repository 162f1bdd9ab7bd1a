"""The exercises: find their files, and read the parts of one.

A file exNN_name.py has up to three parts. The student's stub is made from the first.

    the statement (the docstring), imports, given code, and the functions to write, each with its
    solution between ### BEGIN SOLUTION and ### END SOLUTION
    ### DRIVERS                 functions (file, ...) that call several functions of the student's
                                file, or with functions of ours; a check calls student.driver(...)
    ### CHECKS                  TITLE, MINUTES, CHAPTER, HINTS, the checks, PROMISES, EXPLAINS,
                                WRONG; optional: IN_PLACE, ENGINE, SEEDS,
                                drawn(seed), behaviour(student) (fields of Exercise)
"""

from __future__ import annotations

import ast
import functools
import inspect
import os
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..files import text

if TYPE_CHECKING:
    from .kit import Check

FOLDER = Path(__file__).parent
TASKS = FOLDER / "tasks"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
DRIVERS, CHECKS = "### DRIVERS", "### CHECKS"
MILESTONES = {  # milestone -> the exercises whose functions it runs in the engine
    "05": ("04", "05"), "08": ("06", "08"), "10": ("10",),
}
OWN = "MINILORA_EXERCISES"  # environment variable: the folder of a teacher's own exercises
TODO = 'raise NotImplementedError("write this function")'
OPTIONS = ("in_place", "engine", "drawn", "promises", "explains", "behaviour", "seeds")
Function = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise: the parts of its file, and its checks."""

    number: str  # "07"
    path: Path
    given: str  # the first part, as in the file
    title: str
    minutes: int
    chapter: str  # the chapter to read first, "07"
    hints: tuple[str, ...]
    checks: tuple[Check, ...]
    wrong: Mapping[str, Mapping[str, Function]]  # function -> mistake -> the function with it
    functions: tuple[str, ...]  # the functions to write
    reference: Mapping[str, Function] = field(repr=False)  # their solutions
    # function -> the arguments that it may change
    in_place: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    drivers: Mapping[str, Function] = field(default_factory=dict, repr=False)
    classes: tuple[str, ...] = ()  # that the stub has
    engine: bool = False  # may the student import minilora?
    drawn: Callable[[int], str] | None = None  # the stub for a seed, if stubs differ
    # a check -> words of the sentences of the statement that it checks
    promises: Mapping[Check, tuple[str, ...]] = field(default_factory=dict)
    explains: tuple[str, ...] = ()  # words of the sentences that promise nothing
    # what an answer does, in words that can be compared; None: by its results
    behaviour: Callable[[Any], Mapping[str, Any]] | None = None
    seeds: int = 20  # dev check draws the cases under so many seeds

    @property
    def name(self) -> str:
        """The name of the file: ex07_freeze.py."""
        return self.path.name

    @property
    def points(self) -> int:
        return sum(check.points for check in self.checks)

    @property
    def statement(self) -> str:
        return ast.get_docstring(ast.parse(self.given)) or ""

    def argument(self, function: str, index: int) -> str:
        """Return the name of an argument of a function."""
        known = self.reference.get(function)
        names = [*inspect.signature(known).parameters] if known is not None else []
        return names[index] if index < len(names) else f"argument {index + 1}"

    def stub(self, seed: int = 0) -> str:
        """Return the text that the student starts from: the first part without solutions."""
        return self.drawn(seed) if self.drawn is not None else _unsolved(self.given)

    def solution(self) -> str:
        """Return the first part with its solutions."""
        return _replaced(self.given, lambda _, body: body)


def _replaced(code: str, put: Callable[[str, str], str]) -> str:
    pattern = rf"^( *){BEGIN}\n(.*?)^ *{END}\n"
    return re.sub(pattern, lambda m: put(m[1], m[2]), code, flags=re.M | re.S).rstrip() + "\n"


def _unsolved(given: str) -> str:
    return _replaced(given, lambda indent, _: f"{indent}{TODO}\n")


def paths() -> dict[str, Path]:
    """Return the file of each exercise by its number, in order.

    The environment variable MINILORA_EXERCISES can name a folder with a teacher's own exercises.
    One of them with the number of a built-in exercise replaces it.
    """
    folders, own = [TASKS], os.environ.get(OWN)
    if own and not os.path.isdir(own):
        raise ValueError(f"{OWN} is {own!r}, which is no folder: give the folder of your own "
                         f"exercises, or unset {OWN}")
    folders += map(Path, filter(None, [own]))
    files = [path for folder in folders for path in sorted(folder.glob("ex[0-9][0-9]_*.py"))]
    return dict(sorted({path.name[2:4]: path for path in files}.items()))


def path(number: str | int) -> Path:
    """Return the file of an exercise, given as 7, "7", "07" or a file name.

    Raises ValueError for an unknown exercise.
    """
    named = re.fullmatch(r"(?:ex)?(\d+)(?:_\w*\.py)?", Path(str(number)).name)
    known, wanted = paths(), named[1].zfill(2) if named else ""
    if wanted not in known:
        raise ValueError(f"unknown exercise {number}: choose one of {', '.join(known)}")
    return known[wanted]


def beside(of: Exercise, written: Mapping[str, Function]) -> Mapping[str, Function]:
    """Return everything that a file with these functions defines: those of its stub, too."""
    names = _defined(of.given, ast.FunctionDef, ast.ClassDef)
    spaces = [vars(_module(of.path)), *(
        getattr(inspect.unwrap(function), "__globals__", {}) for function in written.values()
    )]
    space = next(one for one in reversed(spaces) if {*names} <= one.keys())
    return {name: space[name] for name in names} | dict(written)


def _split(content: str) -> tuple[str, str]:
    upper = content.partition(f"\n{CHECKS}\n")[0] + "\n"
    given, _, below = upper.partition(f"\n{DRIVERS}\n")
    return given.rstrip() + "\n", below


def _defined(code: str, *kinds: type) -> list[str]:
    return [node.name for node in ast.parse(code).body if isinstance(node, kinds)]  # type: ignore


@functools.cache
def exercise(number: str | int) -> Exercise:
    """Return an exercise. Raises ValueError for an unknown one, or one that cannot be read."""
    from .kit import Check  # without Hypothesis, this says what to install

    file = path(number)
    try:
        return _read(file, Check)
    except Exception as error:
        raise ValueError(
            f"the exercise {file} cannot be read: {type(error).__name__}: {error}. A file that can "
            "be compared with it: minilora ex dev new 14_name"
        ) from error


def _read(file: Path, kind: type[Check]) -> Exercise:
    module = _module(file)
    given, below = _split(text.read(file))
    functions = tuple(_to_write(given))
    drivers = [name for name in _defined(below, ast.FunctionDef) if not name.startswith("_")]
    options = {
        option: value for option in OPTIONS
        if (value := getattr(module, option.upper(), getattr(module, option, None))) is not None
    }
    of = Exercise(
        number=file.name[2:4], path=file, given=given, title=module.TITLE, minutes=module.MINUTES,
        chapter=module.CHAPTER, hints=tuple(module.HINTS),
        checks=tuple(value for value in vars(module).values() if isinstance(value, kind)),
        wrong=module.WRONG, functions=functions,
        reference={name: getattr(module, name) for name in functions},
        drivers={name: getattr(module, name) for name in drivers},
        classes=tuple(_defined(given, ast.ClassDef)), **options,
    )
    if not (of.points and functions):
        raise ValueError("it has no check with points, or no function with a solution")
    return of


@functools.cache
def _module(file: Path) -> types.ModuleType:
    """The module of a file, with its docstrings and asserts even under `python -OO`."""
    module = types.ModuleType(f"{__package__}.{file.stem}")
    vars(module).update(__file__=str(file), __package__=__package__)
    code = compile(text.read(file), str(file), "exec", dont_inherit=True, optimize=0)
    exec(code, vars(module))
    return module


def _to_write(given: str) -> list[str]:
    """The names of the functions that have a solution."""
    lines = given.splitlines()
    return [
        node.name for node in ast.parse(given).body if isinstance(node, ast.FunctionDef)
        if any(line.strip() == BEGIN for line in lines[node.lineno - 1 : node.end_lineno])
    ]


def exercises() -> tuple[Exercise, ...]:
    """Return all exercises, in order."""
    return tuple(exercise(number) for number in paths())


def with_mistake(
    of: Exercise, function: str, mistake: str, through: bool = False
) -> Mapping[str, Function]:
    """Return the reference with one known mistake in it.

    through: the other functions of the reference call the mistaken one, too.
    """
    written = {**of.reference, function: of.wrong[function][mistake]}
    if through:
        space = vars(_module(of.path)) | written
        for name in written.keys() - {function}:
            given: Any = of.reference[name]
            written[name] = types.FunctionType(given.__code__, space, name, given.__defaults__)
            space[name] = written[name]
    return written
