"""backend/asked.py: the list of what an array library must have is what the code asks for."""

import ast
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import strict
from strategies import adapted, ids

import minilora as ml
from minilora import lora
from minilora.backend import asked
from minilora.backend.device import Device
from minilora.backend.quantised import LEVELS, quantised

PACKAGE = Path(ml.__file__).parent


def calls(sources):
    """Return name -> [most arguments by place, keywords], of the functions of xp in these texts."""
    result = defaultdict(lambda: [0, set()])
    for source in sources:
        for node in ast.walk(ast.parse(source)):
            if of_xp(node):
                result[node.attr]  # asked for, perhaps without a call
            elif isinstance(node, ast.Call) and of_xp(node.func):
                asked_for = result[node.func.attr]
                asked_for[0] = max(asked_for[0], len(node.args))
                asked_for[1] |= {keyword.arg for keyword in node.keywords}
    return dict(result)


def of_xp(node):
    return isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("xp", "ml.xp")


def listed(lines):
    """Return the same of the lines of the list."""
    result = {}
    for line in lines:
        name, inside = line.removesuffix(")").split("(")
        parts = inside.split(", ")
        keywords = {part[:-1] for part in parts if part.endswith("=")}
        result[name] = [len(parts) - len(keywords), keywords]
    return result


COMPARES = {"equal", "not_equal", "less", "less_equal", "greater", "greater_equal"}


@pytest.fixture(scope="module")
def found():
    """What the code asks for: (without the kernels, in the kernels)."""
    texts = {path: text for path in PACKAGE.rglob("*.py")
             if "tutorials" not in path.relative_to(PACKAGE).parts
             and "xp." in (text := path.read_text("utf-8"))}
    kernels = [text for path, text in texts.items() if path.parent.name == "kernels"]
    plain = calls(text for path, text in texts.items() if path.parent.name != "kernels")
    for name in COMPARES:
        plain[name][0] = 2  # a Tensor hands them on: conversions.py
    return plain, calls(kernels)


def test_the_list_is_what_the_code_asks_for(numpy_only, found):
    plain, kernels = found
    assert listed(asked.PLAIN) == plain
    beyond = {}
    for name, (most, keywords) in kernels.items():
        known = plain.get(name, [0, set()])
        if most > known[0] or not keywords <= known[1]:
            beyond[name] = [most, keywords]
    assert listed(asked.KERNELS) == beyond
    assert all(lines == sorted(lines) for lines in (asked.PLAIN, asked.KERNELS))


def test_a_new_call_would_be_seen(numpy_only):
    text = "y = xp.flip(xp.sort(x, kind='stable'), 0) + ml.xp.inf"
    assert calls([text]) == {"flip": [2, set()], "sort": [1, {"kind"}], "inf": [0, set()]}


def test_the_methods_are_what_training_merging_and_codes_ask_for(numpy_only, monkeypatch):
    """On the stand-in, which sees each call."""
    seen, record = set(), strict._record

    def recorded(name, *rest):
        seen.add(name)
        return record(name, *rest)

    monkeypatch.setattr(strict, "_record", recorded)
    monkeypatch.setattr(strict.LOG, "asked", {})
    functions = {line.partition("(")[0] for line in asked.PLAIN + asked.KERNELS}
    for plain in (True, False):
        library = strict.StrictBackend()
        library.plain = plain
        with ml.using(library), np.errstate(all="ignore"):
            model, _ = adapted(0, "float32")
            x = ids(0, tokens=8)
            optimizer, scale = ml.AdamW(model.trainable_parameters()), ml.LossScale()
            ml.fit(model, [(x[:, :-1], x[:, 1:])], optimizer, 2, loss_scale=scale, progress=False)
            lora.merge(model)
            quantised(model.tok.W.data, next(iter(LEVELS))).astype("float16")
    names = {name for name in seen if "." not in name}
    methods = {name.split(".")[1] for name in seen if name.startswith("ndarray.")}
    assert names and names <= functions
    assert methods > {"sum", "astype"}
    assert {name for name in methods if not name.startswith("__")} <= set(asked.ARRAY)


def test_what_a_library_lacks_is_named(backend):
    assert asked.missing(backend) == []
    library = Device()
    library.module = SimpleNamespace(**{
        line.partition("(")[0]: None for line in asked.PLAIN if not line.startswith("exp(")})
    library.module.zeros = lambda shape, dtype: SimpleNamespace(dtype=dtype)
    lacks = asked.missing(library)
    assert lacks[0] == "exp" and "matmul" in lacks and lacks.count("exp") == 1
    assert "array.sum" in lacks and "array.dtype" not in lacks
    library.plain = True
    assert "matmul" not in asked.missing(library) and asked.missing(library)[0] == "exp"
    del library.module.zeros
    assert {"zeros", "array.dtype"} <= {*asked.missing(library)}
