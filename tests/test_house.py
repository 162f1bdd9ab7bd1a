"""The rules of the house: the core's size, the direction of imports, what an import loads."""

import ast
import dataclasses
import importlib
import os
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import minilora

PACKAGE = Path(minilora.__file__).parent
CORE = (  # what a reader has to hold in the head; an import of these is the core, with all it loads
    "tensor", "ops", "gradcheck", "nn", "training.optim", "models.transformer", "models.gpt2",
    "lora",
)
FACE = {"__init__.py", "public.py", "optim.py"}  # the lazy public face, which may look up
ROOMS = [  # each imports from those before it, and from its own
    "words", "extras", "docstrings", "checks", "config", "slots", "backend", "state_dict",
    "display", "conversions", "tensor", "ops", "gradcheck", "files", "jobs", "nn",
    "data", "models", "generate", "adapters", "rounding", "lora", "training", "kernels", "methods",
    "interop", "accounting", "analysis", "pretrain", "demo", "viz", "bench", "experiments",
    "exercises", "site", "cli", "__main__",
]
LIMIT = 4400  # lines of the core, with everything of the package that it imports
SOURCES = [  # an installed package has the chapters, too
    path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE / "tutorials"
]
sources = pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)


def lines(path: Path) -> int:
    """As `wc -l` counts them: docstrings, comments and blank lines too."""
    return path.read_bytes().count(b"\n")


pytestmark = pytest.mark.usefixtures("numpy_only")


def module(path: Path) -> tuple[str, ...]:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts


FILES = {module(path): path for path in SOURCES}


def found(parts: tuple[str, ...]) -> set[Path]:
    return {FILES[parts]} if parts in FILES else set()


def imports(path: Path) -> set[Path]:
    """The package's files that a file imports, anywhere in it: in functions, for types alone, and
    by `import_module` of a name that stands there."""
    package, result = path.relative_to(PACKAGE).parts[:-1], set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").startswith(
            "minilora"
        )):
            base = package[: len(package) - node.level + 1] if node.level else ()
            names = (node.module or "").split(".") if node.module else []
            parts = (*base, *(names[1:] if not node.level else names))
            for alias in node.names:
                result |= found((*parts, alias.name)) or found(parts)
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.startswith("minilora."):
                    result |= found(tuple(alias.name.split(".")[1:]))
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            name = node.args[0].value if isinstance(node.args[0], ast.Constant) else ""
            if name.startswith("minilora."):
                result |= found(tuple(name.split(".")[1:]))
            elif name.startswith("."):
                result |= found((*package, *name.lstrip(".").split(".")))
    return result - {path}


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def test_the_core_and_all_that_it_imports_is_read_in_one_sitting(capsys):
    """Counted in a fresh process: every file of the package that the core has loaded by then.

    The kernels are not in it, nor the threads, which only they use: no file of the core imports
    them, the public face loads them. Here it does not.
    """
    code = (
        "import sys, importlib, types\n"
        "sys.modules['minilora.kernels'] = types.ModuleType('minilora.kernels')\n"
        f"for name in {CORE!r}: importlib.import_module('minilora.' + name)\n"
        "ours = [m for n, m in sys.modules.items() if n.split('.')[0] == 'minilora']\n"
        "print(*(m.__file__ for m in ours if hasattr(m, '__file__')))"
    )
    done = subprocess.run(
        [sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(PACKAGE.parent)},  # the package that the tests import
    )
    loaded = [Path(name) for name in done.stdout.split()]
    core = [path for path in loaded if room(path) != "kernels"]
    assert FILES["backend", "threads"] not in core
    imported, todo = set(), [FILES[tuple(name.split("."))] for name in CORE]
    while todo:  # and by reading: what is imported in functions counts, too
        if (path := todo.pop()) not in imported and room(path) != "__init__":
            imported.add(path)
            todo += imports(path) | {p for p in [path.parent / "__init__.py"] if p.exists()}
    count = sum(map(lines, {*core, *imported}))
    with capsys.disabled():
        print(f" [the core: {count:,} lines in {len({*core, *imported})} files]", end="")
    assert count <= LIMIT


@sources
def test_no_file_is_longer_than_400_lines_and_each_says_what_it_is_for(path):
    assert lines(path) <= 400
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@sources
def test_imports_point_one_way(path):
    """Wherever they stand in the file."""
    assert path.name in FACE or room(path) in ROOMS, f"which room is {room(path)}?"
    if path.parent == PACKAGE and path.name in FACE:
        return
    for other in imports(path):
        if room(other) != room(path):
            assert other.parent != PACKAGE or other.name not in FACE - {"__init__.py"}
            below = room(other) == "__init__" or (
                ROOMS.index(room(other)) < ROOMS.index(room(path)))
            assert below, f"{path.relative_to(PACKAGE)} imports {other.relative_to(PACKAGE)}"


def test_no_files_import_each_other_in_a_circle():
    """Depth first: a file that is met again while it is open closes a circle."""
    state: dict[Path, str] = {}

    def visit(path, way):
        state[path] = "open"
        for other in sorted(imports(path)):
            if other.parent == PACKAGE and other.name in FACE:
                continue  # for the version
            assert state.get(other) != "open", " -> ".join(p.stem for p in [*way, path, other])
            if other not in state:
                visit(other, [*way, path])
        state[path] = "done"

    for path in SOURCES:
        if path not in state and not (path.parent == PACKAGE and path.name in FACE):
            visit(path, [])


def test_one_layout_policy():
    """The linter for all, the formatter for none."""
    for path in SOURCES:
        assert "# fmt:" not in path.read_text("utf-8"), path


def test_ops_are_plain():
    """Array expressions only: no threads, no pieces, no `out=`, no arrays written in place."""
    for path in (PACKAGE / "ops").glob("*.py"):
        source = path.read_text("utf-8")
        assert not re.search(r"\bout=|share\(|\.piece|empty\(|itemsize", source), path
        for node in ast.walk(ast.parse(source)):
            assert not isinstance(node, ast.AugAssign), f"{path.name}:{node.lineno}"


def test_what_is_told_cannot_be_changed():
    """A dataclass that holds a result or a setting is frozen; a run's history grows."""
    found = {}
    for path in SOURCES:
        name = ".".join(("minilora", *path.relative_to(PACKAGE).with_suffix("").parts))
        if name.endswith(("__main__", "gpu")):
            continue
        try:
            module = importlib.import_module(name.removesuffix(".__init__"))
        except ModuleNotFoundError as error:
            assert error.name and not error.name.startswith("minilora")
            continue  # it needs an extra that is not there
        for held in vars(module).values():
            if isinstance(held, type) and dataclasses.is_dataclass(held):
                found[held.__name__] = held.__dataclass_params__.frozen
    assert {name for name, frozen in found.items() if not frozen} == {"History"}
    assert len(found) > 6


def test_an_import_loads_numpy_and_the_standard_library_only():
    code = (
        "import sys, numpy; before = set(sys.modules); import minilora; dir(minilora); "
        "import minilora.data.metrics, minilora.experiments.statistics; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(m for m in new if m not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['minilora']", "['minilora', 'numpy']")


def test_an_import_alone_loads_next_to_nothing():
    code = "import sys, minilora; print(*(m for m in sys.modules if m.startswith('minilora')))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["minilora"]


def test_every_public_name_is_there():
    assert set(minilora.public.__all__) <= set(dir(minilora))
    assert all(getattr(minilora, name) is not None for name in minilora.public.__all__)
    with pytest.raises(AttributeError, match="no 'attach'"):
        _ = minilora.attach


def test_a_star_imports_the_public_names():
    code = "from minilora import *; import minilora; print(*set(minilora.__all__) - set(globals()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not done.stdout.strip() and len(minilora.__all__) > 20


def test_only_gpu_names_cupy():
    for path in SOURCES:
        if path.name != "gpu.py":
            assert not re.search(r"import(_module\(\"| )cupy\b", path.read_text("utf-8"))


def test_versions_agree():
    root = Path(__file__).parent.parent
    for name in ("pyproject.toml", "CITATION.cff"):
        assert minilora.__version__ in (root / name).read_text("utf-8")


def test_what_is_handed_out_is_frozen():
    """A dataclass that is not, but for the history that a run writes, could be changed unseen."""
    found = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            for mark in getattr(node, "decorator_list", []):
                if "dataclass" in ast.unparse(mark):
                    found[node.name] = "frozen=True" in ast.unparse(mark)
    assert {name for name, frozen in found.items() if not frozen} == {"History"}
    assert {"GPT2Config", "LoRAConfig", "Plan", "Ledger", "Comparison"} <= set(found)
    for config in (minilora.GPT2Config(), minilora.LoRAConfig()):
        with pytest.raises(FrozenInstanceError):
            config.dropout = 0.5
