"""The site: reading the chapters, building all pages or none, and the pages in a real browser.

The tests build a small site of two chapters. With MINILORA_SITE=folder they check the site that
`minilora tutorials build` wrote there. `pytest -m browser` runs the tests in a browser.
"""

import ast
import asyncio
import base64
import errno
import html
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from html.parser import HTMLParser
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BUILDS, THOROUGH, builds, kept
from fake_runs import results_of

from minilora import cli, site
from minilora.cli.parser import parse
from minilora.exercises import book
from minilora.experiments.cells import Scale
from minilora.experiments.experiment import experiment
from minilora.experiments.order import NAMES
from minilora.experiments.results import Results
from minilora.experiments.shipped import shipped
from minilora.site import cache, contents, cover, folder, korean, names, publish, report

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser"))), None)
browser = [
    pytest.mark.browser,
    pytest.mark.skipif(not find_spec("playwright"), reason="needs pip install playwright"),
    pytest.mark.skipif(CHROMIUM is None, reason="needs a chromium on the path"),
]
HEADER = """# %% [markdown]
# # {0}
#
# *The reader can then:* {1}.
# *Time:* 5 minutes. *Needs:* {2}.
# *Remember:* the word is `{3}`.
"""
FIRST = (
    HEADER.format("03. One <b>", "read $x^2$", "NumPy", "lora.attach")
    + r"""#
# See chapter 04, chapters 03 and 04, chapter 99. A name: `ml.fit`, `lora.merge(model)`, `attach`.

# %%
import minilora as ml
from minilora import ops, viz

data = [1]


# %% [markdown]
# ## A formula & its code
#
# $$ y = W_0 x + \frac{\alpha}{r}\, B A x $$
#
# $$ y = a + b + c + d + e + f + g + h + i + j + k + l + m + n + o + p + q + r + s + t + u + v $$
#
# <details><summary>Answer</summary>
#
# It is *hidden*, with $\alpha$.
#
# </details>

# %%
t = ml.Tensor([1.0, 2.0], requires_grad=True)
__import__("warnings").warn("invalid value encountered in matmul", RuntimeWarning)
print(ops.softmax(t), "a long line " * 20)
print("a | table", chr(7), "bell")


def f(softmax=1):
    return t.data


# %%
viz.show(viz.stepper([("first", "one"), ("second", "two"), ("third", viz.graph(ops.exp(t).sum()))],
                     title="Three steps"))
viz.source(ops.softmax)
viz.loss_curves({"LoRA": [3.0, 2.0]}, title="It goes down")
viz.show()

# %% [markdown]
# ## A formula & its code
#
# The same heading again. | pirouette
"""
)
SECOND = (
    HEADER.format("04. Two", "stop", "chapter 03", "x")
    + """
# %%
print("MINILORA" + "_FAST")
"""
)


@pytest.fixture(autouse=True)
def backend():
    """The backend does not matter here."""


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """Use a cache folder of the test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "cache"))
    monkeypatch.setenv("MINILORA_FAST", "1")
    monkeypatch.setattr(report, "_make", lambda results: REPORT)


@pytest.fixture(scope="module")
def covered() -> dict:
    """The numbers of the cover, computed once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILORA_FAST", "1")
        return cover._compute()


@pytest.fixture(scope="module")
def built(tmp_path_factory, request) -> Path:
    """The folder of the site to check."""
    if "MINILORA_SITE" in os.environ:
        return Path(os.environ["MINILORA_SITE"]).resolve()
    if not BUILDS:
        pytest.skip("needs pip install '.[tutorials]'")
    numbers = request.getfixturevalue("covered")  # before it is replaced
    place = tmp_path_factory.mktemp("site")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MINILORA_FAST", "1")
        patch.setenv("XDG_CACHE_HOME", str(place / "cache"))
        patch.setattr(cover, "_compute", lambda: numbers)
        measured = report._make(results_of("nlg", "lowdata", "rank"))
        patch.setattr(report, "_make", lambda results: measured)
        site.build(place / "out", lambda line: None, chapters_in(place, FIRST, SECOND))
    return place / "out"


def chapters_in(place: Path, *sources: str) -> list[site.Chapter]:
    for source in sources:
        number = re.search(r"^# # (\d\d)", source, re.MULTILINE)[1]
        (place / f"{number}_name.py").write_text(source, "utf-8")
    return site.chapters(place)


# The chapters.


def test_a_header_is_read(tmp_path):
    one, two = chapters_in(tmp_path, FIRST, SECOND)
    assert (one.number, one.title, one.name) == ("03", "One <b>", "03_name")
    assert (one.can, one.time, one.needs) == ("read $x^2$.", "5 minutes", "NumPy.")
    assert two.remember == "the word is `x`." and two.source == SECOND


@pytest.mark.parametrize(("line", "message"), [
    ("# # 03. One <b>", "its first line must be the title, '# 03. ...'"),
    ("The reader can then", "no line that begins '*The reader can then:*'"),
    ("Time", "no line that begins '*Time:*'"), ("Needs", "no line that begins '*"),
    ("Remember", "no line that begins '*Remember:*'"),
])
def test_a_header_without_a_line_is_an_error(line, message, tmp_path):
    path = tmp_path / "03_name.py"
    path.write_text(FIRST.replace(line, "# # 3. X" if line[0] == "#" else "Other"), "utf-8")
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        contents.read(path)
    assert str(error.value).startswith("03_name.py: ")


def test_a_chapter_is_found_by_number_and_name(monkeypatch, tmp_path):
    chapters_in(tmp_path, FIRST, SECOND)
    monkeypatch.setattr(contents, "folder", lambda: tmp_path)
    assert {site.chapter(w).number for w in ("3", "03", "03_name")} == {"03"}
    for unknown in ("", "5", "33", "3_name", "_name"):
        with pytest.raises(ValueError, match=r"unknown chapter .*: choose 03, 04"):
            site.chapter(unknown)


def test_the_chapters_are_in_the_package_or_beside_it(monkeypatch, tmp_path):
    monkeypatch.setattr(contents, "PACKAGE", tmp_path / "lib" / "minilora")
    with pytest.raises(ValueError, match=r"no tutorials in .*minilora or beside it"):
        contents.folder()
    for place in (tmp_path / "lib" / "tutorials", tmp_path / "lib" / "minilora" / "tutorials"):
        place.mkdir(parents=True)
        chapters_in(place, FIRST)
        assert contents.folder() == place


def test_the_command_lists_every_chapter(capsys):
    assert cli.main(["tutorials", "list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:2] for line in lines] == [c.number for c in site.chapters()]
    assert cli.main(["tutorials", "list", "--json"]) == 0
    chapters = json.loads(capsys.readouterr().out)["chapters"]
    assert all(c["can"] and c["time"].endswith("minutes") and c["needs"] for c in chapters)


@builds
def test_a_notebook_has_the_cells_of_the_script(tmp_path, capsys, monkeypatch):
    import jupytext

    chapters_in(tmp_path, FIRST)
    monkeypatch.setattr(contents, "folder", lambda: tmp_path)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tutorials", "notebook", "3"]) == 0
    assert cli.main(["tutorials", "notebook", "3", "-o", "b.ipynb"]) == 0
    a, b = Path("03_name.ipynb").read_text("utf-8"), Path("b.ipynb").read_text("utf-8")
    assert a == b and json.loads(a)["metadata"]["kernelspec"]["name"] == "python3"
    again = jupytext.reads(a, fmt="ipynb")
    kinds = [cell.cell_type for cell in again.cells]
    assert kinds == ["markdown", "code", "markdown", "code", "code", "markdown"]
    assert again.cells[0].source.startswith("# 03. One <b>\n") and not again.cells[1].outputs


# The command line.


@pytest.mark.parametrize(("line", "message"), {
    "tutorials": "tutorials needs a command: list, run, notebook, build or serve; see",
    "tutorials lits": "tutorials has no command lits: did you mean list?",
    "tutorials list 03": "tutorials list takes no '03': see `minilora tutorials list --help`",
    "tutorials run 03 -o x": "tutorials run has no option -o: tutorials notebook, tutorials",
    "tutorials build --port 1": "tutorials build has no option --port: tutorials serve has it; see",
    "tutorials run": "tutorials run needs a chapter: tutorials run 07",
    "tutorials run 99": "unknown chapter 99: choose 03, 04",
    "tutorials notebook 99": "unknown chapter 99: choose 03, 04",
    "tutorials notebook 03 -o x.txt": "x.txt: give a name that ends in .ipynb, such as x.ipynb",
    "tutorials build --plain": "tutorials build takes no --plain: tutorials run 07 --plain runs",
    "tutorials build -o full": "full exists and is not a site: give another name, or remove it",
    "tutorials build -o full/file": "full/file is a file: give the name of a folder",
    "tutorials build -o no/out": "no/out: no is not a folder: create it first, or give another",
    "tutorials build -o": "--out needs a value",
    "tutorials serve -o full": "full holds no site: minilora tutorials build -o full writes one",
    "tutorials serve --port 65536": "--port 65536: give an integer <= 65,535",
}.items())
def test_a_wrong_command_line_fails_before_any_work(line, message, tmp_path, monkeypatch, capsys):
    place = tmp_path / "chapters"
    place.mkdir()
    chapters_in(place, FIRST, SECOND)
    monkeypatch.setattr(contents, "folder", lambda: place)
    monkeypatch.setattr(publish, "need", lambda *names: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "file").write_text("mine")
    before = sorted(tmp_path.rglob("*"))
    assert cli.main(line.split()) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith(f"minilora: {message}") and err.count("\n") == 1
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("line", ["build", "notebook 03"])
def test_a_missing_package_fails_before_any_work(line, tmp_path, monkeypatch, capsys):
    chapters_in(tmp_path, FIRST)
    monkeypatch.setattr(contents, "folder", lambda: tmp_path)
    monkeypatch.setattr(publish, "find_spec", lambda name: None if name == "jupytext" else 1)
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tutorials", *line.split()]) == 2
    assert capsys.readouterr().err == (
        "minilora: this needs jupytext: pip install '.[tutorials]' in the checkout of minilora\n"
    )


def test_a_chapter_runs_as_a_script_and_a_failure_names_its_line(tmp_path, monkeypatch, capsys):
    bad = SECOND.replace("04.", "05.") + "\n\ndef f():\n    1 / 0\n\n\nf()\n"
    chapters_in(tmp_path, SECOND, bad)
    monkeypatch.setattr(contents, "folder", lambda: tmp_path)
    assert cli.main(["tutorials", "run", "4"]) == 0
    tasks = [one.number for one in book.exercises() if one.chapter == "04"]
    hint = f"To try it yourself: exercise {', '.join(tasks)}, after minilora ex init\n"
    assert capsys.readouterr().out == f"MINILORA_FAST\n\n{hint}"
    assert cli.main(["tutorials", "run", "4", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result["chapter"] == "04" and result["exercises"] == tasks != []
    assert err.startswith("MINILORA_FAST\n")
    assert cli.main(["tutorials", "run", "5"]) == 2
    err = capsys.readouterr().err
    assert re.fullmatch(r"minilora: chapter 05 fails at .*05_name.py, line 13: ZeroDivisionError: "
                        r"division by zero\n", err), err


def test_a_site_is_served_on_this_machine(tmp_path):
    import urllib.request

    (tmp_path / "index.html").write_text(folder.MARK + "hello")
    line = [sys.executable, "-u", "-m", "minilora", "tutorials", "serve", "--port", "0", "-o", "."]
    paths = os.pathsep.join([str(contents.PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    with subprocess.Popen(line, cwd=tmp_path, stdout=subprocess.PIPE, text=True,
                          env={**os.environ, "PYTHONPATH": paths}) as server:
        try:
            where = re.search(r"http://127\.0\.0\.1:\d+/", server.stdout.readline())[0]
            with urllib.request.urlopen(where, timeout=120) as answer:
                assert b"hello" in answer.read()
            taken = where.split(":")[2].strip("/")
            again = subprocess.run(
                [*line[:6], "--port", taken, "-o", "."], cwd=tmp_path, capture_output=True,
                text=True, env={**os.environ, "PYTHONPATH": paths}, check=False,
            )
            assert again.stderr == f"minilora: --port {taken} is taken: give another\n"
        finally:
            server.kill()


def test_the_default_port_is_the_one_in_the_help(tmp_path, monkeypatch, capsys):
    def taken(address, handler):
        raise OSError(errno.EADDRINUSE, f"{address[1]}")

    (tmp_path / "index.html").write_text(folder.MARK)
    monkeypatch.setattr("http.server.ThreadingHTTPServer", taken)
    assert cli.main(["tutorials", "serve", "-o", str(tmp_path)]) == 2
    port = capsys.readouterr().err.split()[2]
    with pytest.raises(SystemExit):
        cli.main(["tutorials", "serve", "--help"])
    assert f"0: any free port ({port})" in capsys.readouterr().out


@builds
def test_an_error_without_a_line_is_reported_at_its_cell():
    from minilora.site import execution

    chapter = SimpleNamespace(number="03", source="a = 1\n\nb = 2\n", path=Path("03_x.py"))
    error = SimpleNamespace(ename="KeyError", evalue="'x'")
    message = execution._failure(chapter, "b = 2", error)
    assert message == "chapter 03 fails at 03_x.py, line 3: KeyError: 'x'"


# The cover, the cache and the folder.


def levels(png, palette=False):
    """Return the signed shades in a picture of the cover, or its colours."""
    chunks, at = {}, 8
    while at < len(png):
        size = int.from_bytes(png[at : at + 4], "big")
        chunks[png[at + 4 : at + 8]] = png[at + 8 : at + 8 + size]
        at += 12 + size
    if palette:
        table = chunks[b"PLTE"]
        return ["#" + table[i : i + 3].hex().upper() for i in range(0, len(table), 3)]
    wide, high = (int.from_bytes(chunks[b"IHDR"][i : i + 4], "big") for i in (0, 4))
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(high, wide + 1)
    return rows[:, 1:].astype(int) - cover.LEVELS


def test_the_cover_shows_an_update_and_the_share_that_each_rank_keeps(covered):
    result = covered
    assert len(result["losses"]) == len(result["left"]) == len(cover.RANKS)
    assert result["left"][0] < 1 and result["left"] == sorted(result["left"], reverse=True)
    pictures = {name: base64.b64decode(png) for name, png in result["pictures"].items()}
    BA, left = (levels(pictures[n]).reshape(-1, cover.DRAWN, cover.DRAWN) for n in ("BA", "left"))
    inside = (abs(BA) < cover.LEVELS) & (abs(left) < cover.LEVELS)
    for r, both in enumerate(inside):  # BA + error = update, at every rank
        both &= inside[-1]
        assert both.mean() > 0.5 and (abs((BA + left)[r] - (BA + left)[-1])[both] <= 2).all()
    assert levels(pictures["W0"]).shape == (cover.DRAWN, cover.DRAWN)


def test_a_picture_is_blue_below_0_white_at_0_and_brown_above():
    png = cover._png([np.array([[-1.0, 0.0, 1.0], [-9.0, 0.5, 9.0]])], 1.0)
    n = cover.LEVELS
    assert levels(png).tolist() == [[-n, 0, n], [-n, n // 2, n]]
    colours = levels(png, palette=True)
    assert (colours[0], colours[n], colours[-1]) == (cover.BELOW, cover.ZERO, cover.ABOVE)
    lightness = [sum(bytes.fromhex(c[1:])) for c in colours]
    assert len(colours) == 2 * n + 1 and lightness[: n + 1] == sorted(lightness[: n + 1])
    assert lightness[n:] == sorted(lightness[n:], reverse=True)


def test_the_share_of_the_way_is_0_at_the_base_and_1_at_the_full_update():
    data = {"shape": (4, 3), "losses": [5.0, 4.0, 3.0], "left": [0.9, 0.5, 0.1]}
    shares = [publish._rank(data | {"before": 5.0, "after": 3.0}, r) for r in (1, 2, 3)]
    assert [re.search(r"(\d+%) of the way", text)[1] for text in shares] == ["0%", "50%", "100%"]


def test_the_cache_key_depends_on_everything_that_affects_a_result(monkeypatch):
    pytest.importorskip("ipykernel")
    first = cache.key("a")
    assert first == cache.key("a") != cache.key("b")
    monkeypatch.setenv("MINILORA_FAST", "0")
    assert cache.key("a") != first
    monkeypatch.setenv("MINILORA_FAST", "1")
    monkeypatch.setattr(cache, "_package", lambda: "another")
    assert cache.key("a") != first
    monkeypatch.undo()
    monkeypatch.setattr(cache.importlib.metadata, "version", lambda name: "0")
    assert cache.key("a") != first


def test_the_digest_covers_the_files_that_chapters_use(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "PACKAGE", tmp_path)
    digests = []
    for name in ("ops.py", "data/text.txt", "site/execution.py", "site/cover.py"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
        digests.append(cache._package.__wrapped__())
    assert len({*digests}) == 4
    for name in ("site/pages.py", "tutorials/01_a.py", "__pycache__/ops.pyc"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("1")
        assert cache._package.__wrapped__() == digests[-1]


def test_old_cache_entries_are_removed(tmp_path, monkeypatch):
    for name in ("old", "used"):
        cache.put(name, "é")
        os.utime(cache._folder() / name, (0, 0))
    assert cache.get("used") == "é" and cache.get("none") is None
    cache.put("new", "1")
    assert {path.name for path in cache._folder().iterdir()} == {"used", "new"}
    (tmp_path / "file").write_text("")
    monkeypatch.setattr(cache, "_folder", lambda: tmp_path / "file" / "cache")
    cache.put("new", "1")  # a folder that cannot be written is ignored
    assert cache.get("new") is None


def damage(path, how):
    """Damage a file of the cache."""
    text = path.read_bytes()
    if how == "a folder":
        path.unlink()
        path.mkdir()
    elif how == "not text":
        path.write_bytes(b"\xff" + text)
    elif isinstance(how, float):
        path.write_bytes(text[: int(how * len(text))])
    elif how == "a letter":
        path.write_bytes(text[:-9] + b"#" + text[-8:])
    elif how == "another's":
        path.write_bytes(path.with_name("other").read_bytes().replace(b"other", b"wrong"))
    elif how == "a loop":
        path.unlink()
        path.symlink_to(path)
    else:
        path.write_text(how, "utf-8")


DAMAGES = ["", "{}", "[]", "null", "5", '{"cells": [], "nbformat": 4}', "a folder", "not text",
           "a letter", "another's", *([] if os.name == "nt" else ["a loop"]), 0.0, 0.3, 0.999]


@builds
@pytest.mark.parametrize("how", DAMAGES)
def test_what_is_damaged_in_the_cache_is_made_again(how, monkeypatch):
    from minilora.site import cover

    calls = []
    monkeypatch.setattr(cover, "_compute", lambda: calls.append(1) or COVER)
    assert cover.cover(print) == cover.cover(print) == COVER and len(calls) == 1
    (path,) = cache._folder().iterdir()
    cache.put("other", json.dumps({"other": 1}))
    damage(path, how)
    assert cache.get(path.name) is None
    assert cover.cover(print) == COVER and len(calls) == 2
    assert cover.cover(print) == COVER and len(calls) == (3 if how == "a folder" else 2)


@pytest.mark.skipif(os.name != "posix", reason="homes are found in another way there")
@pytest.mark.parametrize("variables", [{}, {"HOME": "~"}, {"XDG_CACHE_HOME": "here"}])
def test_a_user_without_a_home_has_a_cache_among_temporary_files(variables, monkeypatch, tmp_path):
    import pwd

    def nobody(uid):
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pwd, "getpwuid", nobody)
    for name in ("HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    cache.put("a", "text")
    assert cache.get("a") == "text"
    if "XDG_CACHE_HOME" not in variables:
        before = os.environ.get("HOME")
        with publish._home():  # Jupyter needs one
            assert cache._folder().is_relative_to(home := Path.home()) and home.is_dir()
        assert os.environ.get("HOME") == before and not home.exists()


def test_a_site_replaces_only_a_site(tmp_path):
    out, page = tmp_path / "out", f"<html>{folder.MARK}".encode()
    folder.write(out, {"index.html": page, "a/b.txt": b"1"})
    assert (out / "a" / "b.txt").read_bytes() == b"1" and folder.is_site(out)
    link = tmp_path / "link"
    if os.name == "posix":
        link.symlink_to(out)
    folder.write(link if os.name == "posix" else out, {"index.html": page, "c.txt": b"2"})
    assert sorted(p.name for p in out.iterdir()) == [folder.LIST, "c.txt", "index.html"]
    assert os.name != "posix" or link.is_symlink()
    with pytest.raises(TypeError):
        folder.write(out, {"index.html": b"new", "d.txt": None})
    assert (out / "index.html").read_bytes() == page
    assert {p.name for p in tmp_path.iterdir()} <= {"out", "link"}  # no temporary files
    (out / "index.html").write_bytes(b"another's")
    with pytest.raises(ValueError, match="exists and is not a site"):
        folder.write(out, {"index.html": page})
    assert not folder.is_site(tmp_path / "none")


def test_a_move_that_fails_puts_the_old_site_back(tmp_path, monkeypatch):
    out, page = tmp_path / "out", folder.MARK.encode()
    folder.write(out, {"index.html": page, "old": b""})
    move = os.replace

    def fails(source, target):
        for path in map(Path, (source, target)):  # on one disk a move is atomic
            assert path.is_relative_to(tmp_path)
        if Path(source).name == "new":
            raise PermissionError(13, "Permission denied", str(target))
        move(source, target)

    monkeypatch.setattr(folder.os, "replace", fails)
    with pytest.raises(PermissionError):
        folder.write(out, {"index.html": page, "new": b""})
    assert sorted(p.name for p in tmp_path.rglob("*")) == [folder.LIST, "index.html", "old", "out"]


def theirs(out, what):
    """What a user may do in a site's folder."""
    if what == "a file":
        (out / "CNAME").write_text("example.org")
    elif what == "a folder":
        (out / "notes").mkdir()
        (out / "notes" / "mine.txt").write_text("")
    elif what == "an edit":
        (out / "03.html").write_bytes(b"03, corrected")
    elif what == "a link":
        (out / "data").symlink_to(out.parent)
    elif what == "no list":
        (out / folder.LIST).unlink()
    else:
        (out / folder.LIST).write_text(what)


@pytest.mark.parametrize(("what", "named"), {
    "a file": "CNAME", "a folder": "notes/mine.txt", "an edit": "03.html", "a link": "data",
    "no list": "03.html", "": "03.html", "[]": "03.html", '{"03.html": "1"}': "03.html",
}.items())
def test_a_site_with_a_file_of_the_users_is_not_replaced(what, named, tmp_path):
    out = tmp_path / "out"
    files = {"index.html": folder.MARK.encode(), "03.html": b"03", "get/03.py": b"x = 1"}
    folder.write(out, files)
    (out / ".DS_Store").write_bytes(b"\0")  # the system's, not the user's
    folder.write(out, files)
    theirs(out, what)
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    with pytest.raises(ValueError, match=rf"out has {named}, .*: give another name, or remove"):
        folder.write(out, files)
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


@builds
@pytest.mark.parametrize(("code", "message"), [
    ("x = 1\n\n\ndef f():\n    assert x == 2, 'x is   not 2'\n\n\nf()",
     "line 16: AssertionError: x is not 2"),
    ("import os\nos._exit(3)", "line 9: its process ended"),
    ("while True:\n    pass", "line 9: a cell took more than 2 s"),
])
def test_a_failing_chapter_is_an_error_and_the_old_site_stays(code, message, tmp_path, monkeypatch):
    monkeypatch.setattr("minilora.site.cover._compute", lambda: pytest.fail("not needed"))
    folder.write(tmp_path / "out", {"index.html": folder.MARK.encode()})
    bad = SECOND.replace('print("MINILORA" + "_FAST")', code)
    slow = SECOND.replace("04.", "05.") + "import time; time.sleep(900)"
    told_of = chapters_in(tmp_path, bad, slow)
    if "while" in code:
        monkeypatch.setattr("minilora.site.execution.PATIENCE", 2)
        told_of.pop()
    began = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        site.build(tmp_path / "out", lambda line: None, told_of)
    assert str(error.value) == f"chapter 04 fails at 04_name.py, {message}"
    assert time.monotonic() - began < 600  # the other chapter is stopped
    assert {p.name for p in (tmp_path / "out").iterdir()} == {"index.html", folder.LIST}
    assert not (tmp_path / "cache").exists()


@builds
def test_chapters_run_where_a_loop_of_asyncio_runs_already_as_in_a_notebook(tmp_path):
    async def in_a_notebook():
        from minilora.site import execution

        return execution.executed(chapters_in(tmp_path), print)

    with ThreadPoolExecutor(1) as thread:  # where no other loop runs, such as the browser's
        assert thread.submit(lambda: asyncio.run(in_a_notebook())).result() == []


@builds
def test_a_chapter_runs_once_and_an_invalid_formula_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr("minilora.site.cover._compute", lambda: COVER)
    lines = []
    chapters = chapters_in(tmp_path, SECOND)
    site.build(tmp_path / "out", lines.append, chapters)
    page = (tmp_path / "out" / "04_name.html").read_text("utf-8")
    assert ">MINILORA_FAST\n</span></pre>" in page
    site.build(tmp_path / "out", lines.append, chapters)
    assert [line.partition("ran in")[0] for line in lines if line.startswith("04")] == [
        "04 Two: ", "04 Two: from the cache"
    ]
    assert (tmp_path / "out" / "04_name.html").read_text("utf-8") == page
    for formula in (r"\left( x", r"\foo{x}"):
        broken = SECOND.replace("# # 04. Two\n", f"# # 04. Two\n#\n# ${formula}$\n")
        with pytest.raises(ValueError, match=re.escape(f"04_name.py: the formula ${formula}$ can")):
            site.build(tmp_path / "out", lines.append, chapters_in(tmp_path, broken))
    assert (tmp_path / "out" / "04_name.html").read_text("utf-8") == page


COVER = {
    "shape": [160, 160], "left": [0.5], "losses": [3.0], "before": 4.0, "after": 2.0, "steps": 1,
    "matrix": "q", "stronger": 2.0, "drawn": 40, "pictures": dict.fromkeys("WBsl", ""),
}


REPORT = {"body": '<h1 id="title">Results</h1>', "claims": 0, "experiments": 0, "pictures": {},
          "verdicts": {}, "pages": {}, "times": {}}


def test_the_cover_says_what_the_report_says(built):
    index, full = (built / name for name in ("index.html", "report.html"))
    index, full = index.read_text("utf-8"), full.read_text("utf-8")
    said = re.search(r"tested here, (\d+) reproduce,\s+(\d+) do not, and (\d+) cannot", index)
    answered = index.partition('class="answered"')[2].partition("</ul>")[0]
    words = re.findall(r"</span> ([a-z ]+)</span>", answered)
    kinds = ("reproduces", "does not reproduce", "undecided")
    assert [*map(int, said.groups())] == [words.count(kind) for kind in kinds] and words
    for name in re.findall(r'href="report.html#([^"]+)"', answered):
        there = full.partition(f'<h2 id="{name}">')[2].partition("<h2")[0]
        here = answered.partition(f'#{name}"')[2].partition("</li>")[0]
        badges = r'class="badge (\w+)"'
        assert re.findall(badges, here) == re.findall(rf"<p><span {badges}", there)


def test_the_korean_page_has_each_claim_with_the_verdict_of_the_report(built):
    page, full = ((built / name).read_text("utf-8") for name in ("ko.html", "report.html"))
    claim = r'([a-z0-9-]+-\d+)">.*?<span class="badge (\w+)"'
    there = dict(re.findall(f'<h3 id="{claim}', full, re.DOTALL))
    here = dict(re.findall(f"report.html#{claim}", page, re.DOTALL))
    assert here and here == {at: there[at] for at in here}
    assert '<html lang="ko">' in page and 'href="ko.html"' in (built / "index.html").read_text()


def test_the_korean_page_covers_the_paper_with_commands_that_exist():
    named = [name for one in korean.HEADINGS for name in one.experiments]
    assert sorted(named) == sorted(name for name, where in NAMES.items() if where == "paper")
    assert {*korean.CLAIMS} == {*named}
    for name in named:
        assert len(korean.CLAIMS[name]) == len(experiment(name).claims)
    for command in (c for one in korean.HEADINGS for c in one.commands):
        assert command.split()[0] == "minilora"
        parse(cli.command_line(), command.split()[1:])  # an error if it does not exist


def test_the_cover_counts_and_gives_the_range_of_measured_times():
    counted = publish._counted()
    assert (counted["few"], counted["file"], counted["model"]) == ("18,874,368", "38 MB", "349 GB")
    ratios = report._times(Results(shipped(), Scale()))
    assert ratios["base"] == [1.0, 1.0]
    for low, high in (ratios["LoRA"], ratios["Adapter-H"]):
        assert 1 < low < high < 2


@builds
def test_the_report_comes_from_the_cache_until_the_package_changes(monkeypatch):
    calls = []
    monkeypatch.setattr(report, "_make", lambda results: calls.append(1) or REPORT)
    assert report.report(print) == report.report(print) == REPORT and len(calls) == 1
    (path,) = cache._folder().iterdir()
    damage(path, "{}")
    assert report.report(print) == REPORT and len(calls) == 2


# Names and prose.


def test_every_public_name_has_a_place_on_the_api_page():
    import minilora

    places = names.places()
    assert {f"minilora.{name}" for name in minilora.__all__} <= {*places}
    for module in ("lora", "optim", "nn", "ops", "accounting", "data", "rounding", "viz"):
        there = getattr(getattr(minilora, module), "__all__", [])
        assert {f"minilora.{module}.{name}" for name in there} <= {*places}
    assert places["minilora.lora.LoRAConfig"] == places["minilora.LoRAConfig"]
    assert places["minilora.lora.attach"] == "api.html#lora.attach"
    entries = [e for section in names.sections() for e in section.entries]
    assert len({e.anchor for e in entries}) == len(entries)
    assert not [e.name for e in entries if not e.doc]
    methods = [m for e in entries for m in e.methods]
    assert methods and not [m.anchor for m in methods if m.name[0] == "_" or not m.signature]
    assert not [e.name for e in entries if " at 0x" in e.doc + e.signature or "<" in e.signature]
    for signature in (part.signature for e in entries for part in (e, *e.methods)):
        assert " ".join(names.parameters(signature)) == signature
    assert names.parameters("(a: dict[str, int] = {}, *, b) -> (x, y)") == [
        "(a: dict[str, int] = {},", "*,", "b) -> (x, y)"
    ]
    (history,) = (e for e in entries if e.anchor == "ml.History")
    assert names.parameters(history.signature)[0] == "(losses: list[float] = [],"


def test_names_come_from_imports_unless_the_script_redefines_them():
    known = names.known_in("import minilora as m\nfrom minilora import ops, data\ndata = ops.x\n")
    assert known == {"m": "minilora", "ops": "minilora.ops"}
    assert names.place("m.lora.attach.x", known) == ("m.lora.attach", "api.html#lora.attach")
    assert names.place("ops.zzz", known) == ("ops", "api.html#ops")
    assert names.place("m.zzz", known) is None and names.place("data.x", known) is None
    assert names.bound(ast.parse("def f(): x = 1\nclass C: pass")) == {"f", "x", "C"}


@builds
def test_prose_links_existing_names_and_chapters():
    from minilora.site.prose import Prose, docstring

    prose = Prose({"ml": "minilora"}, {"attach": "minilora.lora.attach"}, {"03": "03_x.html"})
    wide = prose.markdown(r"$$ a^{2}, \qquad b, \quad c $$")
    assert wide.count("<math") == 3 and prose.markdown(r"$$ {a \quad b} $$").count("<math") == 1
    assert prose.line(r"$|x| \ln p$").count('lspace="0" rspace="0"') == 2
    assert '<mi>ln</mi><mspace width="0.167em" /><mi>p</mi>' in prose.line(r"$\ln p$")
    fit = '<a href="api.html#ml.fit"><code>{}</code></a>'
    assert prose.line("`ml.fit(a, b)` `ml.fit.x` `fit` `attach`") == (
        f"{fit.format('ml.fit(a, b)')} <code>ml.fit.x</code> <code>fit</code> "
        '<a href="api.html#lora.attach"><code>attach</code></a>'
    )
    assert prose.line("chapters 02 and 03, year 03") == (
        'chapters 02 and <a href="03_x.html">03</a>, year 03'
    )
    assert not re.search("<(?!/?span)", prose.code("x = 1"))  # the caller adds the block
    assert 'href="api.html#ml.fit"' in prose.code("ml.fit(x)") and "href" not in prose.code(
        "x.ml.fit(ml=1); attach(fit)"
    )
    assert 'id="a-b"' in prose.markdown("## A $b$") and 'id="a-b-"' in prose.markdown("## A `b`")
    assert docstring(prose, "x <y>\nmore  `ml.fit`\nand\nmore\n\na b  c\n d  e") == (
        f"<p>x &lt;y&gt;</p><p>more  {fit.format('ml.fit')}</p><p>and more</p>"
        '<pre><span class="line" style="--in:2ch">a b  c\n</span>'
        '<span class="line" style="--in:3ch"> d  e\n</span></pre>'
    )
    long = "a line that is full of words as it is and has no room at all for others"
    assert docstring(prose, f"{long}\nword") == f"<p>{long} word</p>"
    assert docstring(prose, f"{long}.\nword") == f"<p>{long}.</p><p>word</p>"
    assert docstring(prose, f"x\n\na  {long}\nword") == f"<p>x</p><p>a  {long} word</p>"
    assert docstring(prose, "x\n\na: one\nb: two\nand on\n\nc: three\non") == (
        "<p>x</p><dl><dt><code>a</code></dt><dd>one</dd><dt><code>b</code></dt><dd>two and on</dd>"
        "</dl><p>c: three on</p>"
    )
    assert docstring(prose, "x\n\na   one\nbc  two <\n    on\nd   `ml.fit`").endswith(
        "<dl><dt><code>a</code></dt><dd>one</dd><dt><code>bc</code></dt><dd>two &lt; on</dd>"
        f"<dt><code>d</code></dt><dd>{fit.format('ml.fit')}</dd></dl>"
    )


# The pages as files.


class Read(HTMLParser):
    """The tags of a page with their attributes."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.feed(path.read_text("utf-8"))

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, {name: value or "" for name, value in attrs}))

    def all(self, attribute, *tags):
        return [attributes[attribute] for tag, attributes in self.tags if attribute in attributes
                and (tag in tags or not tags)]


def test_every_link_and_anchor_leads_somewhere(built):
    pages = {path.name: Read(path) for path in built.glob("*.html")}
    assert len(pages) >= 4
    search = (built / "search.js").read_text("utf-8")
    addresses = [address for _, _, address, _ in json.loads(search.removeprefix("SEARCH = "))]
    links = [(name, link) for name, page in pages.items()
             for link in page.all("href") + page.all("src")]
    for name, link in [*links, *(("", address) for address in addresses)]:
        if link.startswith("http"):
            assert re.match(r"https://(arxiv\.org|github\.com)/", link), link
            continue
        where, _, anchor = link.partition("#")
        where = where or name
        if anchor:
            assert anchor in pages[where].all("id"), (name, link)
        else:
            assert link.startswith("data:image") or (built / where).is_file(), (name, link)
    reached = {link.partition("#")[0] for _, link in links}
    loaded = re.compile(r"pyodide/.+|get/minilora-.+\.whl|try-worker\.js")  # by try.js
    names = {path.relative_to(built).as_posix() for path in built.rglob("*.*")}
    others = {name for name in names if not loaded.fullmatch(name)}
    assert others <= reached | {"search.js", "index.html", folder.LIST}


def test_a_page_has_landmarks_headings_and_alt_texts(built):
    for path in built.glob("*.html"):
        page = Read(path)
        language = "ko" if path.name == "ko.html" else "en"
        assert ("html", {"lang": language}) in page.tags
        assert {"header", "main", "footer", "nav"} <= {tag for tag, _ in page.tags}
        ids = page.all("id")
        assert len(ids) == len({*ids})
        assert all(attrs.get("id") for tag, attrs in page.tags if re.fullmatch("h[1-6]", tag))
        for tag, attrs in page.tags:
            if tag == "img":
                assert len(attrs["alt"]) > 15 and "object" not in attrs["alt"], (path.name, attrs)
        heads = [int(tag[1]) for tag, _ in page.tags if re.fullmatch("h[1-6]", tag)]
        assert heads[0] == 1 and heads.count(1) == 1
        assert all(after <= before + 1 for before, after in pairwise(heads))
        text = path.read_text("utf-8")
        assert 'aria-label="Warning"' not in text, path.name
        assert not re.search(r"\$[^$<]*\\[a-z]", re.sub(r"<pre.*?</pre>", "", text, flags=re.S))


@pytest.mark.skipif("MINILORA_SITE" in os.environ, reason="checks the small site")
def test_the_small_site_has_what_its_chapters_say(built):
    page = (built / "03_name.html").read_text("utf-8")
    assert "03. One &lt;b&gt;" in page and '<a href="04_name.html">04</a>' in page
    assert "chapter 99" in page and 'href="api.html#ml.fit"' in page
    assert '<a href="api.html#lora.merge"><code>lora.merge(model)</code></a>' in page
    assert page.count('<span class="nd">@op</span>') == 1  # viz.source, highlighted
    assert "</strong> The word is" in page
    assert "language-python" not in page  # no block inside the block
    assert 'id="a-formula-its-code"' in page and 'href="#a-formula-its-code-"' in page
    assert "*Time:*" not in page and page.count('minilora-stepper" ') == 1
    for part in ("It goes down", 'rel="next" href="04_name.html"', "get/03_name.ipynb"):
        assert part in page, part
    assert 'href="api.html#data"' not in page
    assert 'a | table \\x07 bell' in page and "<pre>first</pre>" not in page
    assert 'data-smallest="13.33"' in page
    api = (built / "api.html").read_text("utf-8")
    used = api.partition('<h3 id="lora.merge">')[2].partition("</section>")[0]
    assert used.count('Used in chapter <a href="03_name.html">03</a>') == 1
    index = (built / "index.html").read_text("utf-8")
    assert "read <math" in index and 'chapter <a href="03_name.html">03</a>' in index
    assert (built / "get" / "03_name.py").read_text("utf-8") == FIRST


@pytest.mark.skipif("MINILORA_SITE" in os.environ, reason="checks the small site")
def test_the_report_has_its_claims_figures_and_a_link_from_every_page(built):
    page = (built / "report.html").read_text("utf-8")
    for name in ("nlg", "lowdata", "rank"):
        for claim in experiment(name).claims:
            assert html.escape(claim.says) in page
        assert f'href="#{name}-1"' in page and f'<h3 id="{name}-1">' in page
    assert 'src="figures/report-rank-mini-e2e.png"' in page
    assert "1. How large" not in page and page.count("<h1") == 1
    for path in built.glob("*.html"):
        assert 'href="report.html"' in path.read_text("utf-8"), path.name
    assert "3 experiments on a laptop" in (built / "index.html").read_text("utf-8")


def test_the_exercises_are_on_a_page_and_under_their_chapters(built):
    tasks = book.exercises()
    page = (built / "exercises.html").read_text("utf-8")
    for task in tasks:
        assert f'<h2 id="ex-{task.number}">' in page and f"get/{task.name}" in page
        assert (built / "get" / task.name).read_text("utf-8") == task.stub()
        first = html.escape(task.statement.split("\n")[2], quote=False)
        assert re.sub("`([^`]+)`", r"<code>\1</code>", first) in page
    for lesson in built.glob("[0-9][0-9]_*.html"):
        mine = [task.number for task in tasks if task.chapter == lesson.name[:2]]
        assert mine == re.findall(r"exercises\.html#ex-(\d\d)", lesson.read_text("utf-8"))


def test_a_statement_wraps_except_indented_blocks():
    pytest.importorskip("latex2mathml")
    from minilora.site import prose

    html_text = prose.statement("Take `x`\n    x   a <b>\n\n      y\nand return\nit.\n")
    plain = re.sub(r"</?span[^>]*>", "", html_text)
    assert plain == (
        "<p>Take <code>x</code></p><pre>x   a &lt;b&gt;\n\n  y\n</pre><p>and return\nit.</p>"
    )
    assert re.findall(r"--in:(\d+)ch", html_text) == ["2", "2", "4"]


def test_no_page_has_backticks_or_control_characters(built):
    for path in sorted(built.glob("*.html")):
        page = path.read_text("utf-8")
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]", page), path.name
        prose = re.sub(r"<(script|pre|textarea).*?</\1>", "", page, flags=re.DOTALL)
        assert "`" not in prose, path.name
        assert path.name != "exercises.html" or "`" not in page


# The pages in a browser.


@pytest.fixture(scope="module")
def chromium(built):
    """A real browser. The site is built first, as playwright keeps an event loop running."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as play:
        sandbox = ["--no-sandbox"] if os.name == "posix" and os.getuid() == 0 else []
        yield (started := play.chromium.launch(executable_path=CHROMIUM, args=sandbox))
        started.close()


@pytest.fixture
def tab(chromium, built):
    """tab(page, width=..., scheme=...) opens a page; the browser must report no errors."""
    contexts, complaints = {}, []

    def context_of(settings):
        context = chromium.new_context(**settings)
        context.on("console", lambda line: complaints.append(f"{line.page.url}: {line.text}"))
        context.on("weberror", lambda error: complaints.append(f"{error.page.url}: {error.error}"))
        context.on("requestfailed", lambda request: request.failure == "net::ERR_ABORTED"
                or complaints.append(f"no {request.url}"))
        context.on("request", lambda request: request.url.startswith((built.as_uri(), "data:"))
                or complaints.append(f"{request.url} is request for"))
        return context

    def opened(name="index.html", width=1280, scheme="light", **settings):
        settings["color_scheme"] = scheme
        if str(settings) not in contexts:
            contexts[str(settings)] = context_of(settings)
        page = contexts[str(settings)].new_page()
        page.set_viewport_size({"width": width, "height": 800})
        page.goto(f"{built.as_uri()}/{name}")
        return page

    yield opened
    for context in contexts.values():
        context.close()
    assert not complaints


def marked(tests):
    """Mark tests that open a browser."""
    for mark in browser:
        tests = mark(tests)
    return tests


@marked
def test_nothing_is_wider_than_the_screen(tab, built):
    for path in sorted(built.glob("*.html")):
        page = tab(path.name)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        for width in (360, 390, 768, 1100, 1440) if THOROUGH else (360, 1440):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate("document.documentElement.scrollWidth") <= width, path.name
        page.close()


CUT = """() => {
  const wrong = [], SMALLEST = 11;
  const small = (pixels) => pixels < SMALLEST - 0.05 ? ` has ${pixels.toFixed(1)} px` : "";
  for (const box of document.querySelectorAll("pre, figure, .live")) {
    if (!box.checkVisibility()) continue;
    const name = `${box.tagName} ${box.textContent.trim().slice(0, 30)}`;
    if (box.scrollWidth > box.clientWidth + 1) wrong.push(`${name} is cut`);
    if (box.tagName === "PRE" && small(parseFloat(getComputedStyle(box).fontSize)))
      wrong.push(`${name} is small`);
  }
  for (const text of document.querySelectorAll("svg text")) {
    const size = parseFloat(getComputedStyle(text).fontSize) * text.getScreenCTM().a;
    if (text.checkVisibility() && small(size)) wrong.push(text.textContent + small(size));
  }
  for (const image of document.querySelectorAll("img[data-smallest]")) {
    const scale = image.getBoundingClientRect().width / image.getAttribute("width");
    const size = scale * image.dataset.smallest;
    if (small(size)) wrong.push(image.alt.slice(0, 30) + small(size));
  }
  return wrong;
}"""


@marked
@pytest.mark.parametrize("scheme", kept(["light", "dark"], "light"))
def test_no_code_and_no_figure_is_cut_or_too_small(scheme, tab, built):
    for path in sorted(built.glob("*.html")):
        page = tab(path.name, scheme=scheme)
        page.evaluate("""() => {
          document.querySelectorAll("details").forEach((d) => { d.open = true; });
          document.querySelectorAll("figure").forEach((f) => { f.hidden = false; });
          document.querySelectorAll("img").forEach((i) => { i.loading = "eager"; });
        }""")
        page.wait_for_function("[...document.images].every((i) => i.complete)")
        for width in (360, 390, 1280) if THOROUGH else (360, 1280):
            page.set_viewport_size({"width": width, "height": 800})
            assert page.evaluate(CUT) == [], (path.name, width)
        page.close()


@marked
def test_a_wide_graph_scrolls_to_its_active_box(tab, tmp_path):
    import minilora as ml
    from minilora import viz

    parts = [ml.Tensor(float(i), requires_grad=True) for i in range(8)]
    names = {f"a_long_name_{i}": part for i, part in enumerate(parts)}
    total = parts[0] * parts[1]
    for a, b in ((2, 3), (4, 5), (6, 7)):
        total = total + parts[a] * parts[b]
    frames = viz.backward_steps(total, names)
    page = tab(width=390)
    page.evaluate("document.body.innerHTML = ''")
    page.set_content(viz.stepper(frames)._repr_html_())
    slider = page.locator("input")
    for i in range(len(frames)):
        slider.evaluate("(e, i) => { e.value = i; e.dispatchEvent(new Event('input')); }", i)
        box = page.locator("figure:visible [data-now]").bounding_box()
        assert box["x"] >= 0 and box["x"] + box["width"] <= 390, i


@marked
@pytest.mark.parametrize(
    ("width", "scheme"), kept([(390, "light"), (1440, "dark")], (390, "light")))
def test_axe_finds_nothing(width, scheme, tab, built):
    axe = Path(os.environ.get("AXE", "axe.min.js"))
    if not axe.is_file():
        pytest.skip("needs AXE=axe.min.js (npm pack axe-core)")
    for path in sorted(built.glob("*.html")):
        page = tab(path.name, width, scheme)
        page.evaluate("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
        page.evaluate(axe.read_text("utf-8"))
        violations = page.evaluate("axe.run(document, {preload: false})")["violations"]
        broken = [(v["id"], [node["target"] for node in v["nodes"]][:4]) for v in violations]
        assert not broken, path.name
        page.close()


@marked
def test_the_cover_is_moved_by_arrow_keys(tab):
    page = tab()
    before = page.locator("#rank-text").inner_text()
    page.locator("#rank").focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("#rank-now").inner_text() == str(publish.START + 1)
    after = page.locator("#rank-text").inner_text()
    assert before != after and "numbers instead of" in after
    moved = page.locator(".panels image").evaluate_all("all => all.map(i => i.getAttribute('y'))")
    high = page.locator(".panels image").first.get_attribute("height")
    assert [int(y) for y in moved] == [0, *[-int(high) * publish.START] * 3]
    page.keyboard.press("Home")
    assert page.locator("#rank-now").inner_text() == "1"
    for _ in range(20):
        page.keyboard.press("ArrowLeft")
    assert page.locator("#rank-now").inner_text() == "1"


@marked
def test_every_stepper_is_moved_by_arrow_keys(tab, built):
    seen = 0
    for path in sorted(built.glob("*.html")):
        if 'class="minilora-stepper"' not in path.read_text("utf-8"):
            continue
        page = tab(path.name)
        for stepper in page.locator(".minilora-stepper").all():
            frames = stepper.locator("figure")
            assert [f.is_visible() for f in frames.all()].count(True) == 1
            stepper.locator("input").focus()
            page.keyboard.press("Home")
            page.keyboard.press("ArrowRight")
            assert [f.is_visible() for f in frames.all()].index(True) == 1
            stepper.locator("button").first.click()
            assert frames.first.is_visible()
            seen += 1
        page.close()
    assert seen


@marked
def test_search_finds_entries_and_links_to_them(tab, built):
    entries = json.loads((built / "search.js").read_text("utf-8").removeprefix("SEARCH = "))
    titles = [title for _, title, _, _ in entries]
    assert "ops.softmax" in titles and not [title for title in titles if "(" in title]
    heading = "Break it" if "Break it" in titles else "A formula & its code"
    page = tab("api.html")
    page.keyboard.press("/")
    page.keyboard.type("softMAX")
    page.wait_for_selector("#results a")
    assert "ops.softmax" in page.locator("#results").inner_text()
    assert "API: ops.softmax" in page.locator("#results a").all_inner_texts()
    assert page.locator("#results mark").first.inner_text().lower() == "softmax"
    page.locator("#search input").fill("zzzzz")
    assert page.locator("#results [role=status]").inner_text() == "No results."
    page.locator("#search input").fill(heading)
    focused = "document.activeElement.getAttribute('href')"
    page.keyboard.press("ArrowDown")
    first = page.evaluate(focused)
    assert first in [where for _, title, where, _ in entries if title == heading]
    page.keyboard.press("ArrowDown")
    assert page.evaluate(focused) not in (first, None)
    page.keyboard.press("ArrowUp")
    page.keyboard.press("ArrowUp")
    assert page.evaluate("document.activeElement.type") == "search"
    page.keyboard.press("Escape")
    assert not page.locator("#results").is_visible()
    page.locator("#search input").fill("<img src=x> onerror")
    assert page.locator("#results img").count() == 0
    page.locator("#search input").fill(heading)
    page.keyboard.press("Enter")
    page.wait_for_url(f"**/{first}")
    page = tab("api.html")
    page.evaluate("document.head.append = (script) => { window.late = script; }")
    page.locator("#search input").fill("softmax")
    page.keyboard.press("Enter")
    page.evaluate("Element.prototype.append.call(document.head, late)")  # the index comes now
    page.wait_for_url(lambda url: "#" in url)


@marked
def test_the_list_of_names_scrolls_to_the_current_one(tab):
    page = tab("api.html#viz.stepper", width=1440)
    for name in ("viz.stepper", "ml.GPT2", "ops.softmax"):
        page.evaluate(f"location.hash = '{name}'")
        link = page.locator(f".contents a[href='#{name}']")
        page.wait_for_function(
            "e => e.getBoundingClientRect().top >= 0 && e.getBoundingClientRect().bottom < 800",
            arg=link.element_handle(), timeout=60_000,
        )
        assert page.locator(f"[id='{name}']").bounding_box()["y"] < 800


@marked
def test_the_theme_is_remembered_from_page_to_page(tab):
    colour = "getComputedStyle(document.body).backgroundColor"
    page = tab()
    light = page.evaluate(colour)
    assert page.locator("#theme").inner_text() == "Dark"
    page.locator("#theme").click()
    dark = page.evaluate(colour)
    assert dark != light and page.locator("#theme").inner_text() == "Light"
    page.goto(page.url.replace("index.html", "api.html"))
    assert page.evaluate(colour) == dark
    page.locator("#theme").click()
    page.reload()
    assert page.evaluate(colour) == light
    assert tab(scheme="dark").evaluate(colour) == dark


@marked
def test_figures_are_inverted_in_the_dark_and_blend_with_the_page(tab, built):
    chapter = next(p for p in sorted(built.glob("[0-9]*.html")) if "<figure><a" in p.read_text())
    look = "e => [getComputedStyle(e).filter, getComputedStyle(e).mixBlendMode]"
    looks = {"light": ["none", "multiply"], "dark": ["invert(1) hue-rotate(180deg)", "screen"]}
    for scheme, other in (("light", "dark"), ("dark", "light")):
        page = tab(chapter.name, scheme=scheme)
        figure = page.locator("figure > a > img").first
        assert figure.evaluate(look) == looks[scheme]
        page.locator("#theme").click()
        assert figure.evaluate(look) == looks[other]
        page.emulate_media(media="print")
        assert figure.evaluate(look) == looks["light"]
        page.emulate_media(media="screen")
        page.locator("#theme").click()


@marked
def test_no_answer_is_beside_its_question(tab, built):
    seen = 0
    for path in sorted(built.glob("[0-9]*.html")):
        page = tab(path.name, width=1440)
        for row in page.locator(".row:has(.prose > details):has(.work > *)").all():
            question, work = (
                row.locator(f"> {part}").bounding_box() for part in (".prose", ".work")
            )
            assert work["y"] >= question["y"] + question["height"] - 1, path.name
            assert work["x"] > question["x"]
            seen += 1
        page.close()
    assert seen


@marked
def test_code_is_copied_unchanged(tab, built):
    chapter = next(path for path in sorted(built.glob("[0-9]*.html")))
    page = tab(chapter.name, permissions=["clipboard-read", "clipboard-write"])
    first = page.locator(".input").first
    first.hover()
    first.locator("button").click()
    first.locator("button", has_text="Copied").wait_for()
    copied = page.evaluate("navigator.clipboard.readText()")
    script = (built / "get" / f"{chapter.stem}.py").read_text("utf-8")
    assert copied.strip() and copied.strip() in re.sub(r"\n{3,}", "\n\n", script)


@marked
def test_the_keyboard_is_enough(tab, built):
    # On 390 px no formula is cut; a window that is narrower scrolls the longest.
    pages = (tab(path.name, width=240) for path in sorted(built.glob("[0-9]*.html")))
    page = next(page for page in pages if page.locator(".formula[tabindex='0']").count())
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "Skip to the text"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    scrolling = page.locator(".formula[tabindex='0']").first
    scrolling.focus()
    assert scrolling.evaluate("e => getComputedStyle(e).outlineStyle") != "none"
    page.keyboard.press("ArrowRight")
    page.wait_for_function("document.activeElement.scrollLeft > 0")


@marked
def test_in_print_and_without_javascript_nothing_is_hidden(tab, built):
    for path in sorted(built.glob("*.html")):
        page = tab(path.name)
        page.emulate_media(media="print")
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert not page.locator("header").is_visible()
        assert all(page.locator("details").evaluate_all("all => all.map(d => d.open)"))
        page.close()
        page = tab(path.name, java_script_enabled=False)
        seen = page.locator("figure").evaluate_all("all => all.map(f => f.checkVisibility())")
        assert all(seen), path.name
        page.close()


@marked
def test_images_load_and_next_links_lead_through_the_chapters(tab, built):
    for path in sorted(built.glob("*.html")):
        page = tab(path.name)
        page.evaluate("document.querySelectorAll('img').forEach((i) => { i.loading = 'eager'; })")
        page.wait_for_function("[...document.images].every((i) => i.complete)")
        sizes = page.locator("img").evaluate_all("all => all.map(i => i.naturalWidth)")
        assert all(sizes), path.name
        page.close()
    chapters = sorted(path.name for path in built.glob("[0-9]*.html"))
    page = tab(chapters[0])
    for after in chapters[1:]:
        page.locator("a[rel=next]").click()
        page.wait_for_url(f"**/{after}")
    assert not page.locator("a[rel=next]").count()
    assert page.locator("a[rel=prev]").get_attribute("href") == chapters[-2]
