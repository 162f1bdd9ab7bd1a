"""Mutation testing: break the package in one place, run the tests, see which mistakes they miss.

    python tests/mutants.py --seed 1 --count 300 minilora/lora

Each mutant is one small mistake in a copy of the tree. The whole suite runs once without any, and
notes which test calls which function; then a mutant meets every test that calls the function it
stands in, those of its file's own name first. What no test can tell from the original stands in
equivalent.txt, with the reason.
"""

import argparse
import ast
import contextlib
import cProfile
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import CodeType

import pytest

ROOT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
OPERATORS = {  # what is written, and what is written instead
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"), ast.Add: ("+", "-"), ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"), ast.MatMult: ("@", "*"), ast.BitOr: ("|", "&"), ast.BitAnd: ("&", "|"),
    ast.BitXor: ("^", "|"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}


# The mistakes.


@dataclass
class Mutant:
    """A file in which the bytes from `start` to `end` are another text."""

    path: str
    source: bytes
    start: int
    end: int
    text: str

    @property
    def broken(self) -> bytes:
        return self.source[: self.start] + self.text.encode() + self.source[self.end :]

    def counts(self) -> bool:
        """Is it Python, and another program?"""
        with contextlib.suppress(SyntaxError):
            return ast.dump(ast.parse(self.broken)) != ast.dump(ast.parse(self.source))
        return False

    def __str__(self) -> str:
        """The path, and the line before and after."""
        first = self.source.rfind(b"\n", 0, self.start) + 1
        last = (self.source + b"\n").find(b"\n", self.end)
        old, after = self.source[first:last], self.source[self.end : last]
        new = self.source[first : self.start] + self.text.encode() + after
        old, new = (" ".join(text.decode().split()) for text in (old, new))
        return f"{self.path}\n    - {old}\n    + {new}"


def mutants(path: str, source: bytes) -> Iterator[Mutant]:
    """Every mistake of our kinds in a file; none in types, nor in the words of errors."""
    begins = [0, *itertools.accumulate(map(len, source.splitlines(keepends=True)))]

    def walk(node: ast.AST, last: bool = False) -> Iterator[Mutant]:
        for (first, at), (final, till), text in _edits(node, last):
            yield Mutant(path, source, begins[first - 1] + at, begins[final - 1] + till, text)
        for field, value in ast.iter_fields(node):
            if field in ("annotation", "returns", "exc") or isinstance(node, ast.JoinedStr):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    end = isinstance(node, ast.FunctionDef) and child is node.body[-1]
                    yield from walk(child, end)

    def _edits(node: ast.AST, last: bool) -> Iterator[tuple]:
        """(from, to, text) of what can go wrong in one node; last: it ends a function."""
        whole = (_start(node), _end(node)) if hasattr(node, "lineno") else ()
        match node:
            case ast.Compare(left, ops, others):
                for before, op, after in zip([left, *others], ops, others):
                    yield _operator(before, op, after)
            case ast.BinOp(left, op, right):
                yield _operator(left, op, right)
            case ast.BoolOp(op, values):
                for before, after in itertools.pairwise(values):
                    yield _operator(before, op, after)
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield *whole, f"({ast.unparse(node.operand)})"
            case ast.Constant(value=bool()):
                yield *whole, str(not node.value)
            case ast.Constant(value=int()):
                yield from ((*whole, str(node.value + step)) for step in (-1, 1))
            case ast.Constant(value=float()):
                yield *whole, str(2 * node.value or 1.0)
            case ast.Slice(lower, upper, step) if lower or upper:
                low, high = (x and ast.unparse(x) for x in (lower, upper))
                by = f":{ast.unparse(step)}" if step else ""
                if not isinstance(lower, ast.Constant):
                    yield *whole, f"({low or 0}) + 1:{high or ''}{by}"
                if not isinstance(upper, ast.Constant):
                    yield *whole, f"{low or ''}:({high or 0}) - 1{by}"
            case ast.Call(function, arguments, keywords):
                for i in range(len(keywords)):
                    fewer = ast.Call(function, arguments, keywords[:i] + keywords[i + 1 :])
                    yield *whole, ast.unparse(fewer)
            case ast.Expr(value=ast.Constant() | ast.Yield() | ast.YieldFrom()):
                pass
            case ast.Expr() | ast.Delete() | ast.Raise():
                yield *whole, "pass"
            case ast.Return() | ast.Continue() | ast.Break() if not last:
                yield *whole, "pass"
            case ast.AugAssign(target, op, value):
                yield *whole, "pass"
                yield _operator(target, op, value)
            case ast.Assign(targets=[target], value=value):
                names = {x.id for x in ast.walk(value) if isinstance(x, ast.Name)}
                if not isinstance(target, ast.Name) or target.id in names:  # bound before
                    yield *whole, "pass"
        tests = getattr(node, "ifs", [node.test] if isinstance(node, ast.If | ast.IfExp) else [])
        for test in tests:
            if not isinstance(test, ast.UnaryOp | ast.Compare) or len(getattr(test, "ops", "")) > 1:
                yield _start(test), _end(test), f"not ({ast.unparse(test)})"

    def _operator(left: ast.AST, op: ast.AST, right: ast.AST) -> tuple:
        """The operator alone is another."""
        old, new = OPERATORS[type(op)]
        (first, at), (final, till) = _end(left), _start(right)
        between = source[begins[first - 1] + at : begins[final - 1] + till].decode()
        return (first, at), (final, till), between.replace(old, new, 1)

    def _start(node: ast.AST) -> tuple[int, int]:
        return node.lineno, node.col_offset

    def _end(node: ast.AST) -> tuple[int, int]:
        return node.end_lineno, node.end_col_offset

    yield from walk(ast.parse(source))


def sample(paths: Iterable[str], seed: int, count: int) -> list[Mutant]:
    """So many mutants of these files and folders, in their order."""
    found = [sorted(p.rglob("*.py")) if p.is_dir() else [p] for p in map(Path, paths)]
    files = dict.fromkeys(file.resolve() for group in found for file in group)
    every = [m for f in files for m in mutants(f.relative_to(ROOT).as_posix(), f.read_bytes())]
    order = random.Random(seed).sample(range(len(every)), len(every))
    seen: set[str] = set()  # of every file at least one
    order.sort(key=lambda i: every[i].path in seen or seen.add(every[i].path) or False)
    drawn = itertools.islice((i for i in order if every[i].counts()), count)
    return [every[i] for i in sorted(drawn)]


def equivalent() -> dict[str, str]:
    """What `print` says of a mutant -> why no test can tell it from the original; a line `+ ...`
    stands for all that becomes of that line."""
    known, reason, path, old = {}, "", "", ""
    for line in EQUIVALENT.read_text("utf-8").splitlines():
        if line.startswith("    - "):
            old = line
        elif line.startswith("    + "):
            known[f"{path}\n{old}\n{line}"] = reason
        elif line.endswith(".py"):
            path = line
        elif line:
            reason = line
    return known


# The tests, on a copy of the tree: this file is also a plugin of theirs.

CALLED, CHOSEN = "MINILORA_CALLED", "MINILORA_CHOSEN"  # files: test -> its seconds, what it calls
called: dict[str, tuple[float, list[tuple[str, int]]]] = {}
chosen: dict[str, float] = {}


def pytest_collection_modifyitems(items):
    """Only the tests chosen, in that order; or none of the stand-in's, which call the same."""
    if CHOSEN in os.environ:
        chosen.update(json.loads(Path(os.environ[CHOSEN]).read_text("utf-8")))
        order = list(chosen)
        items[:] = sorted(
            (item for item in items if item.nodeid in chosen),
            key=lambda item: order.index(item.nodeid),
        )
    else:
        items[:] = [item for item in items if "[strict" not in item.nodeid]


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item):
    """Note what a test calls; or end all if it takes far longer than it did."""
    if CHOSEN in os.environ:
        getattr(signal, "alarm", int)(30 + round(10 * chosen[item.nodeid]))
        return (yield)
    start, profile = time.perf_counter(), cProfile.Profile()
    with profile:
        result = yield
    codes = [x.code for x in profile.getstats() if isinstance(x.code, CodeType)]
    places = [(os.path.relpath(x.co_filename), x.co_firstlineno) for x in codes]
    ours = [place for place in places if place[0].startswith("minilora")]
    called[item.nodeid] = time.perf_counter() - start, ours
    return result


def pytest_sessionfinish():
    if CALLED in os.environ:
        Path(os.environ[CALLED]).write_text(json.dumps(called), "utf-8")


def passed(tree: Path, files: Iterable[str] = (), seconds: float = 3600, **variables: str) -> bool:
    """Do these tests pass, and in time? What they have started is ended."""
    options = ("-x", "-p", "no:cacheprovider", "-m", "not oracle", "-p", "mutants")
    environment = {"OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
    variables |= environment | {"PYTHONPATH": os.pathsep.join([str(tree), str(tree / "tests")])}
    with subprocess.Popen(
        [sys.executable, "-m", "pytest", *options, *files], cwd=tree, env=os.environ | variables,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(AttributeError, ProcessLookupError):  # on Windows; none left
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()


def nearest(mutant: Mutant, called: dict) -> dict[str, float]:
    """The tests that call what it stands in, a function or else the file, and those of the file's
    own name or its folders', which may run it in another process; and how long each takes.
    These come first, then the shortest, and last the same on the stand-in for CuPy. None: all."""
    line = mutant.source.count(b"\n", 0, mutant.start) + 1
    first, last = 1, line + mutant.source.count(b"\n")
    for node in ast.walk(ast.parse(mutant.source)):
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            begin = min(x.lineno for x in [node, *node.decorator_list])
            if first <= begin <= line <= node.end_lineno:
                first, last = begin, node.end_lineno
    names = {f"tests/test_{part}.py" for part in Path(mutant.path).with_suffix("").parts}
    found = []
    for test, (seconds, places) in called.items():
        own = test.partition("::")[0] in names
        if own or any(path == mutant.path and first <= at <= last for path, at in places):
            found.append((not own, seconds, test))
    found = found or [(True, seconds, test) for test, (seconds, _) in called.items()]
    here = {test: seconds for _, seconds, test in sorted(found)}
    return here | {test.replace("[numpy", "[strict"): seconds for test, seconds in here.items()}


def kills(tree: Path, mutant: Mutant, called: dict) -> bool:
    """Does a test fail on it?"""
    chosen = nearest(mutant, called)
    (tree / "chosen.json").write_text(json.dumps(chosen), "utf-8")
    (tree / mutant.path).write_bytes(mutant.broken)
    try:
        files = dict.fromkeys(test.partition("::")[0] for test in chosen)
        seconds = 60 + 3 * sum(chosen.values())
        return not passed(tree, files, seconds, **{CHOSEN: "chosen.json"})
    finally:
        (tree / mutant.path).write_bytes(mutant.source)


def main() -> int:
    """Print each survivor, then what became of the mutants of each file; 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("paths", nargs="*", default=[str(ROOT / "minilora")], help="files, folders")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="how many, drawn from all there are")
    options = parser.parse_args()
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a job in the background ignores it
    with contextlib.suppress(ImportError):  # a mistake may ask for any amount of memory
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (16 << 30, resource.RLIM_INFINITY))
    known, table = equivalent(), defaultdict[str, Counter[str]](Counter)
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
        tree = Path(shutil.copytree(ROOT, Path(folder) / "tree", ignore=ignored))
        if not passed(tree, **{CALLED: "called.json"}):
            raise SystemExit("a test fails without any mutant")
        calls = json.loads((tree / "called.json").read_text("utf-8"))
        for mutant in sample(options.paths, options.seed, options.count):
            line = str(mutant).rpartition("\n")[0]
            if {str(mutant), f"{line}\n    + ..."} & known.keys():
                fate = "equivalent"
            else:
                fate = "killed" if kills(tree, mutant, calls) else "alive"
            if fate == "alive":
                print(mutant, flush=True)
            table[mutant.path].update(["mutants", fate])
    table["all"] = sum(table.values(), Counter())
    for path, row in table.items():
        columns = (
            f"{row[name]:>5} {name}" for name in ("mutants", "killed", "equivalent", "alive")
        )
        print(f"{path:<40}", *columns)
    return int(table["all"]["alive"] > 0)


if __name__ == "__main__":
    sys.exit(main())
