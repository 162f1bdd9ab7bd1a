"""The rules of the house: the core's size, the direction of imports, what an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import minilora

PACKAGE = Path(minilora.__file__).parent
CORE = [
    "backend.py", "tensor.py", "gradcheck.py", "nn.py", "optim.py", "lora.py",
    "models/transformer.py", "models/gpt2.py",
    "ops/__init__.py", "ops/algebra.py", "ops/fused.py", "ops/shape.py",
]  # fmt: skip
LEVELS = [
    {"backend"}, {"tensor"}, {"ops"}, {"gradcheck", "nn", "checkpoint", "data"},
    {"models", "optim"}, {"lora"}, {"train", "generate"}, {"accounting", "rounding"},
    {"pretrain", "demo", "viz"}, {"cli"}, {"__init__", "__main__"},
]  # fmt: skip


def test_the_core_stays_under_1600_lines():
    lines = [line for name in CORE for line in (PACKAGE / name).read_text("utf-8").splitlines()]
    assert sum(bool(line.strip()) for line in lines) < 1600


def test_imports_point_one_way():
    level = {name: i for i, names in enumerate(LEVELS) for name in names}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if not isinstance(node, ast.ImportFrom) or not node.level:
                continue
            package = parts[: len(parts) - node.level]
            if package:
                continue  # within one room
            names = [node.module.split(".")[0]] if node.module else [a.name for a in node.names]
            for name in names:
                if name in level and parts[0] != "__init__":
                    assert level[name] <= level[parts[0]], f"{'/'.join(parts)} imports {name}"


def test_an_import_loads_numpy_and_the_standard_library_only():
    code = (
        "import sys, numpy; before = set(sys.modules); import minilora; "
        "new = {m.split('.')[0] for m in set(sys.modules) - before}; "
        "print(sorted(m for m in new if m not in sys.stdlib_module_names))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() in ("['minilora']", "['minilora', 'numpy']")


def test_only_backend_names_cupy():
    for path in PACKAGE.rglob("*.py"):
        if path.name not in ("backend.py", "cli.py"):
            assert "import cupy" not in path.read_text("utf-8")


def test_versions_agree():
    root = Path(__file__).parent.parent
    for name in ("pyproject.toml", "CITATION.cff"):
        assert minilora.__version__ in (root / name).read_text("utf-8")
