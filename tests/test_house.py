"""The rules of the house: the core's size, the direction of imports, what an import loads."""

import ast
import dataclasses
import importlib
import re
import subprocess
import sys
from dataclasses import FrozenInstanceError
from pathlib import Path

import pytest

import minilora

PACKAGE = Path(minilora.__file__).parent
CORE = [  # what a reader has to hold in the head
    "backend/__init__.py", "tensor.py", "gradcheck.py", "nn.py", "optim.py",
    "models/transformer.py", "models/gpt2.py",
    *(f"ops/{x}.py" for x in ("__init__", "algebra", "neural", "shape")),
    *(f"lora/{x}.py" for x in ("__init__", "layers", "convert", "files")),
]
LEVELS = [  # each room may import from those before it, and from its own
    {"checks", "words", "atomic", "signals"}, {"backend", "config"}, {"display"}, {"tensor"},
    {"ops"},
    {"gradcheck", "checkpoint", "data"}, {"nn"},
    {"surgery", "schedules", "storage"}, {"optim", "recompute"}, {"kernels"}, {"models"},
    {"lora", "rounding", "methods"},  # they hold to lora or build on it; it hands some of them on
    {"loss_scale"}, {"run"}, {"train", "generate"}, {"accounting"},
    {"pretrain", "demo", "viz"}, {"bench", "site", "exercises"}, {"cli", "public"},
    {"__init__", "__main__"},
]
SOURCES = [  # an installed package holds the chapters, too
    path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE / "tutorials"
]
sources = pytest.mark.parametrize("path", SOURCES, ids=lambda p: p.name)


def lines(path: Path) -> int:
    """As `wc -l` counts them: docstrings, comments and blank lines too."""
    return path.read_bytes().count(b"\n")


pytestmark = pytest.mark.usefixtures("numpy_only")


def test_the_core_stays_under_1600_lines():
    assert {path.name for path in (PACKAGE / "ops").glob("*.py")} == {
        Path(name).name for name in CORE if name.startswith("ops/")
    }
    assert {path.name for path in (PACKAGE / "lora").glob("*.py")} == {
        Path(name).name for name in CORE if name.startswith("lora/")
    }
    assert sum(lines(PACKAGE / name) for name in CORE) < 1600


@sources
def test_no_file_is_longer_than_400_lines_and_each_says_what_it_is_for(path):
    assert lines(path) <= 400
    assert ast.get_docstring(ast.parse(path.read_text("utf-8")))


@sources
def test_imports_point_one_way(path):
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    assert parts[0] in level, f"which level is {parts[0]} on?"
    for node in ast.parse(path.read_text("utf-8")).body:  # at the top: what is loaded with it
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        if parts[: len(parts) - node.level]:
            continue  # within one room
        for name in [node.module.split(".")[0]] if node.module else [a.name for a in node.names]:
            if name in level and parts[0] != "__init__":
                assert level[name] <= level[parts[0]], f"{'/'.join(parts)} imports {name}"


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
