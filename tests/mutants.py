"""Mutation testing: break the package in one place, run the tests, see which mistakes they miss.

    python tests/mutants.py --seed 1 --count 300 minilora/lora

Each mutant is one small mistake in a copy of the tree. It meets the tests of its file's own name,
on NumPy; only what those let live meets the whole suite. What no test can tell from the original
stands in equivalent.txt, with the reason.
"""

import argparse
import ast
import contextlib
import functools
import itertools
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

ROOT = Path(__file__).parent.parent
EQUIVALENT = Path(__file__).with_name("equivalent.txt")
NUMPY = ("-k", "not [strict")  # the stand-in comes with the whole suite
OPERATORS = {  # what is written, and what is written instead
    ast.Eq: ("==", "!="), ast.NotEq: ("!=", "=="), ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"),
    ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Is: ("is", "is not"),
    ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"), ast.NotIn: ("not in", "in"),
    ast.And: ("and", "or"), ast.Or: ("or", "and"), ast.Add: ("+", "-"), ast.Sub: ("-", "+"),
    ast.Mult: ("*", "/"), ast.Div: ("/", "*"), ast.FloorDiv: ("//", "*"), ast.Mod: ("%", "*"),
    ast.Pow: ("**", "*"), ast.MatMult: ("@", "*"), ast.BitOr: ("|", "&"), ast.BitAnd: ("&", "|"),
    ast.BitXor: ("^", "|"), ast.LShift: ("<<", ">>"), ast.RShift: (">>", "<<"),
}  # fmt: skip


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


# The tests, on a copy of the tree.


def tests(tree: Path, *arguments: str, seconds: float = 1800) -> bool:
    """Do they pass, and in time? What they have started is ended."""
    command = [sys.executable, "-m", "pytest", "-x", "-p", "no:cacheprovider", "-m", "not oracle"]
    environment = {"OPENBLAS_NUM_THREADS": "1", "MPLBACKEND": "Agg", "PYTHONDONTWRITEBYTECODE": "1"}
    with subprocess.Popen(
        [*command, *arguments], cwd=tree, env=os.environ | environment | {"PYTHONPATH": str(tree)},
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
    ) as process:  # fmt: skip
        try:
            return process.wait(seconds) == 0
        except subprocess.TimeoutExpired:
            return False
        finally:
            with contextlib.suppress(AttributeError, ProcessLookupError):  # on Windows; none left
                os.killpg(process.pid, signal.SIGKILL)
            process.kill()


@functools.cache
def own(tree: Path, path: str) -> tuple[tuple[str, ...], float]:
    """The tests of this file's name or its folders', the nearest first, and how long they take."""
    names = [f"tests/test_{part}.py" for part in reversed(Path(path).with_suffix("").parts)]
    names = [name for name in names if (tree / name).exists()]
    start = time.perf_counter()
    if names and not tests(tree, *names, *NUMPY):
        raise SystemExit(f"{', '.join(names)} fail without any mutant")
    return tuple(names), time.perf_counter() - start


def kills(tree: Path, mutant: Mutant) -> bool:
    """Does a test fail on it?"""
    names, seconds = own(tree, mutant.path)
    (tree / mutant.path).write_bytes(mutant.broken)
    try:
        if names and not tests(tree, *names, *NUMPY, seconds=20 + 5 * seconds):
            return True
        return not tests(tree)
    finally:
        (tree / mutant.path).write_bytes(mutant.source)


def main() -> int:
    """Print each survivor, then what became of the mutants of each file; 1 if one survived."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("paths", nargs="*", default=[str(ROOT / "minilora")], help="files, folders")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--count", type=int, default=100, help="how many, drawn from all there are")
    options = parser.parse_args()
    with contextlib.suppress(ImportError):  # a mistake may ask for any amount of memory
        import resource

        resource.setrlimit(resource.RLIMIT_DATA, (16 << 30, resource.RLIM_INFINITY))
    known, table = equivalent(), defaultdict[str, Counter[str]](Counter)
    with tempfile.TemporaryDirectory() as folder:
        ignored = shutil.ignore_patterns(".*", "__pycache__", "build", "dist")
        tree = Path(shutil.copytree(ROOT, Path(folder) / "tree", ignore=ignored))
        for mutant in sample(options.paths, options.seed, options.count):
            line = str(mutant).rpartition("\n")[0]
            if {str(mutant), f"{line}\n    + ..."} & known.keys():
                fate = "equivalent"
            else:
                fate = "killed" if kills(tree, mutant) else "alive"
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
