"""The rules of the house: the core's size, the direction of imports, what an import loads."""

import ast
import io
import re
import subprocess
import sys
import tokenize
from pathlib import Path

import minilora

PACKAGE = Path(minilora.__file__).parent
CORE = [  # what a reader has to hold in the head
    "backend.py", "tensor.py", "gradcheck.py", "nn.py", "optim.py",
    "models/transformer.py", "models/gpt2.py",
    *(f"ops/{x}.py" for x in ("__init__", "algebra", "attend", "fused", "shape")),
    *(f"lora/{x}.py" for x in ("__init__", "layers", "convert", "files")),
]  # fmt: skip
NOT_CODE = {
    tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT,
    tokenize.ENDMARKER,
}  # fmt: skip
LEVELS = [
    {"host", "display"}, {"backend"}, {"gpu", "threads"}, {"tensor"}, {"ops"},
    {"gradcheck", "nn", "recompute", "checkpoint", "data"},
    {"models", "optim"}, {"lora", "loss_scale"}, {"train", "generate"}, {"accounting", "rounding"},
    {"pretrain", "demo", "viz", "engines"}, {"bench", "parity"}, {"cli"}, {"__init__", "__main__"},
]  # fmt: skip


def code_lines(source: str) -> int:
    """Lines that hold code: blank lines, comments and docstrings apart."""
    lines: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in NOT_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(source)):
        body = getattr(node, "body", None)
        first = body[0] if isinstance(body, list) and body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            lines -= set(range(first.lineno, first.end_lineno + 1))
    return len(lines)


def test_lines_are_counted_as_a_reader_would():
    assert code_lines('"""Doc\nstring."""\n\n# why\nx = 1  # here\ny = (\n    2\n)\n') == 4


def test_the_core_stays_under_1600_lines_of_code():
    assert sum(code_lines((PACKAGE / name).read_text("utf-8")) for name in CORE) < 1600


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
        if path.name != "gpu.py":
            assert not re.search(r"import(_module\(\"| )cupy\b", path.read_text("utf-8"))


def test_versions_agree():
    root = Path(__file__).parent.parent
    for name in ("pyproject.toml", "CITATION.cff"):
        assert minilora.__version__ in (root / name).read_text("utf-8")
