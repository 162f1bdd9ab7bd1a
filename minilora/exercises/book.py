"""The exercises, one file each. All there is to one is read from its file: nothing is kept twice.

A file exNN_name.py has up to three parts, and the student's stub is made from the first:

    the statement (its docstring), imports, what is given, and each function to write, with the
    solution between ### BEGIN SOLUTION and ### END SOLUTION
    ### BESIDE THE STUDENT      functions (student, ...) that run in the student's process
    ### CHECKS                  TITLE, MINUTES, CHAPTER, HINTS, the checks, WRONG
"""

from __future__ import annotations

import ast
import functools
import importlib.util
import inspect
import os
import re
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .kit import Check

FOLDER = Path(__file__).parent
TASKS = FOLDER / "tasks"
BEGIN, END = "### BEGIN SOLUTION", "### END SOLUTION"
BESIDE, CHECKS = "### BESIDE THE STUDENT", "### CHECKS"
MILESTONES = {  # after which the student's functions run in the engine, and whose it takes
    "05": ("04", "05"), "08": ("06", "08"), "10": ("10",),
}
OWN = "MINILORA_EXERCISES"  # the environment variable with the folder of a teacher's own
TODO = 'raise NotImplementedError("write this function")'
Function = Callable[..., Any]


@dataclass(frozen=True)
class Exercise:
    """One exercise: its file's parts, and what its checks are."""

    number: str  # "07"
    path: Path
    given: str  # the first part, as in the file
    title: str
    minutes: int
    chapter: str  # the chapter to read first, "07"
    hints: tuple[str, ...]
    checks: tuple[Check, ...]
    wrong: Mapping[str, Mapping[str, Function]]  # function -> mistake -> the function with it
    functions: tuple[str, ...]  # what the student writes
    reference: Mapping[str, Function] = field(repr=False)  # those, solved
    in_place: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # what a function changes
    engine: bool = False  # may the student import minilora?
    drawn: Callable[[int], str] | None = (
        None  # the stub for a seed, where it is not always the same
    )

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

    def argument(self, function: str, place: int) -> str:
        """The name of a function's argument."""
        known = self.reference.get(function)
        names = [*inspect.signature(known).parameters] if known is not None else []
        return names[place] if place < len(names) else f"argument {place + 1}"

    def stub(self, seed: int = 0) -> str:
        """What the student starts from: the first part, without the solutions."""
        if self.drawn is not None:
            return self.drawn(seed)
        return _between(self.given, lambda indent, _: f"{indent}{TODO}\n")

    def solution(self) -> str:
        """The first part, solved."""
        return _between(self.given, lambda _, body: body)


def _between(text: str, put: Callable[[str, str], str]) -> str:
    pattern = rf"^( *){BEGIN}\n(.*?)^ *{END}\n"
    return re.sub(pattern, lambda m: put(m[1], m[2]), text, flags=re.M | re.S).rstrip() + "\n"


def paths() -> dict[str, Path]:
    """The file of each exercise, by its number, in order: the built-in, then a teacher's own.

    A teacher's are in the folder that the environment variable MINILORA_EXERCISES names; one with
    the number of a built-in takes its place.
    """
    folders = [TASKS, *map(Path, filter(None, [os.environ.get(OWN)]))]
    found = [path for folder in folders for path in sorted(folder.glob("ex[0-9][0-9]_*.py"))]
    return dict(sorted({path.name[2:4]: path for path in found}.items()))


def path(number: str | int) -> Path:
    """The file of an exercise: 7, "7", "07" or its name. Raises ValueError if there is none."""
    named = re.fullmatch(r"(?:ex)?(\d+)(?:_\w*\.py)?", Path(str(number)).name)
    there, wanted = paths(), named[1].zfill(2) if named else ""
    if wanted not in there:
        raise ValueError(f"there is no exercise {number}: there are {', '.join(there)}")
    return there[wanted]


def drivers(file: Path) -> Mapping[str, Function]:
    """The functions beside the student, of the file's text: its checks are not loaded."""
    given, beside = _split(file.read_text("utf-8"))
    if not beside:
        return {}
    space: dict[str, Any] = {"__name__": "beside"}
    unsolved = _between(given, lambda indent, _: f"{indent}{TODO}\n")  # a student may look around
    exec(compile(unsolved + beside, str(file), "exec", dont_inherit=True), space)
    return {name: space[name] for name in _defined(beside) if not name.startswith("_")}


def _split(text: str) -> tuple[str, str]:
    upper = text.partition(f"\n{CHECKS}\n")[0] + "\n"
    given, _, beside = upper.partition(f"\n{BESIDE}\n")
    return given.rstrip() + "\n", beside


def _defined(text: str) -> list[str]:
    return [node.name for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)]


@functools.cache
def exercise(number: str | int) -> Exercise:
    """An exercise by its number. Raises ValueError if there is none."""
    from .kit import Check

    file = path(number)
    module = _module(file)
    given, _ = _split(file.read_text("utf-8"))
    functions = tuple(_to_write(given))
    reference = {name: getattr(module, name) for name in functions}
    options = {
        field: value for field, name in (("in_place", "IN_PLACE"), ("engine", "ENGINE"),
                                         ("drawn", "drawn"))
        if (value := getattr(module, name, None)) is not None
    }
    return Exercise(
        number=file.name[2:4], path=file, given=given, title=module.TITLE, minutes=module.MINUTES,
        chapter=module.CHAPTER, hints=tuple(module.HINTS),
        checks=tuple(held for held in vars(module).values() if isinstance(held, Check)),
        wrong=module.WRONG, functions=functions, reference=reference, **options,
    )


@functools.cache
def _module(file: Path) -> types.ModuleType:
    spec = importlib.util.spec_from_file_location(f"{__package__}.{file.stem}", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _to_write(given: str) -> list[str]:
    lines = given.splitlines()
    return [
        node.name for node in ast.parse(given).body if isinstance(node, ast.FunctionDef)
        if any(line.strip() == BEGIN for line in lines[node.lineno - 1 : node.end_lineno])
    ]


def exercises() -> tuple[Exercise, ...]:
    """All of them, in order."""
    return tuple(exercise(number) for number in paths())


def mistaken(
    of: Exercise, function: str, mistake: str, through: bool = False
) -> Mapping[str, Function]:
    """The reference with one known mistake in it; what runs beside it meets the mistake too.

    through: so do the reference's other functions, where they call this one.
    """
    written = {**of.reference, function: of.wrong[function][mistake]}
    if through:
        space = vars(_module(of.path)) | written
        for name in written.keys() - {function}:
            given: Any = of.reference[name]
            written[name] = types.FunctionType(given.__code__, space, name, given.__defaults__)
            space[name] = written[name]
    return beside(of, written)


def beside(of: Exercise, written: Mapping[str, Function]) -> Mapping[str, Function]:
    """These functions of a student, and with them what the exercise runs beside a student."""
    module = _module(of.path)
    given, drivers = _split(of.path.read_text("utf-8"))
    there = {name: getattr(module, name) for name in _defined(given)}
    student = types.SimpleNamespace(**(there | dict(written)))
    return {
        **written,
        **{name: functools.partial(getattr(module, name), student) for name in _defined(drivers)},
    }
