"""site/library.py: the page "Bring an array library" has every hook, and its code works."""

import re
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import builds

import minilora as ml
from minilora.backend import Backend, asked

pytestmark = [builds, pytest.mark.usefixtures("numpy_only")]


@pytest.fixture
def library():
    from minilora.site import library

    return library


def test_every_hook_has_its_reason_and_every_function_its_place(library):
    from minilora.site import names, prose

    page = library.body(prose.Prose({}, names.usual(), {}))
    plain = re.sub(r"<[^>]+>", "", page)
    hooks = [name for name, hook in vars(Backend).items() if callable(hook) and name[0] != "_"]
    assert len(hooks) > 15
    for name in hooks:
        assert f"<dt><code>.{name}(" in page or name == "on_cores", name
    assert "on_cores" not in page, "it is the kernels' own"
    for line in (*asked.PLAIN, *asked.KERNELS, *asked.ARRAY):
        assert f"<code>{line}</code>" in page, line
    assert "{{" not in plain and page.count("<h1") == 1


def test_the_code_of_the_page_runs_and_the_library_agrees_with_numpy(library, monkeypatch, capsys):
    """On NumPy in the place of the library that it speaks of."""
    class MyLib(SimpleNamespace):
        def __getattr__(self, name):
            return getattr(np, name)

    special = SimpleNamespace(erf=Backend().erf)
    mylib = MyLib(to_host=np.asarray, wait=lambda: None, bytes_in_use=lambda: 0, special=special)
    monkeypatch.setitem(sys.modules, "mylib", mylib)
    names, before = {}, ml.current()
    try:
        for block in library.code():
            exec(block, names)
        assert ml.current() is names["library"] and ml.current().name == "mylib"
        assert Backend.owns(names["library"], np.ones(2))
    finally:
        ml.use(before)
    lacks, error, far = capsys.readouterr().out.splitlines()
    assert lacks == "missing: []" and float(error) < 1e-5 and float(far) < 1e-5
