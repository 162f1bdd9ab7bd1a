# ruff: noqa: E501 - attacks keep their long lines
"""A synthetic class: right, wrong, unfinished and hostile submissions with their expected points.

    python tests/klass.py --students 100 --jobs 2       # grade such a class and compare

Every hostile file tries to end, hang, deceive or rob the judge, and also gives a wrong answer.
"""

from __future__ import annotations

import argparse
import ast
import functools
import os
import random
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from minilora.exercises import book, classpage, grading
from minilora.exercises import judge as judging
from minilora.exercises.student import Limits

SOON = Limits(seconds=0.15, cpu=1, memory=1 << 30)  # of the processor: a busy machine is no matter
ATTACK = replace(SOON, wait=1.5, total=4.0)  # by the clock: for files that get no points anyway
WALK = """
import sys, os, time, struct, json
def _frames():
    frame = sys._getframe()
    while frame:
        yield frame
        frame = frame.f_back
def _pipe():
    return next(f.f_locals["answer"] for f in _frames() if "answer" in f.f_locals)
def _id():
    return next(f.f_locals["request"]["id"] for f in _frames() if "request" in f.f_locals)
def _forge(plain, body=b""):
    head = json.dumps(plain).encode()
    _pipe().write(struct.pack("<QQ", len(head), len(body)) + head + body)
    _pipe().flush()
def _dict(**values):
    return {"dict": [[k, v] for k, v in values.items()]}
"""
BODY = {  # the body of the function: an attack; a wrong answer follows
    "loop": "while True: pass",
    "exit": "import sys; sys.exit(0)",
    "leave": "import os; os._exit(0)",
    "abort": "import os; os.abort()",
    "recursion": "return unbroadcast(g, shape)",
    "allocate": "return np.zeros((10**6, 10**6)) + 1",
    "large": "return np.zeros(10**7)",
    "nearly too large": "return np.zeros(5 * 10**5)",
    "flood": "while True: print('x' * 10**5)",
    "slow": "import time; time.sleep(0.8)",
    "sleep": "import time; time.sleep(1e6)",
    "stop": "import signal; signal.raise_signal(signal.SIGSTOP)",
    "kill": "import os; os.kill(os.getppid(), 9)",
    "pidfd": "import os, signal; signal.pidfd_send_signal(os.pidfd_open(os.getppid()), 9)",
    "deaf": "import signal, time\n    for s in range(1, 64):\n        try: signal.signal(s, signal.SIG_IGN)"
            "\n        except Exception: pass\n    time.sleep(1e6)",
    "fork": "import os\n    while True: os.fork()",
    "thread": "import threading, time; threading.Thread(target=lambda: time.sleep(1e6)).start()",
    "atexit": "import atexit, time; atexit.register(time.sleep, 1e6); raise SystemExit",
    "garbage": "import os\n    for fd in range(3, 30):\n        try: os.write(fd, b'x' * 1000)\n"
               "        except OSError: pass",
    "closed": "import os; os.closerange(0, 100)",
    "an error without a message": "class E(Exception):\n        def __str__(self): return 1/0\n"
                                    "    raise E",
    "a value without a repr": "class V:\n        def __repr__(self): return 1/0\n    return V()",
    "script": "raise type('<script>alert(1)</script>', (Exception,), {})('\\x1b[31m<b>')",
    "always equal": "class E(np.ndarray):\n        def __eq__(self, o): return np.bool_(True)\n"
                    "        __ne__ = __lt__ = __gt__ = __eq__\n    return np.ones(shape).view(E)",
    "text": "return np.full(shape, 'x')",
    "objects": "return np.full(shape, None)",
    "nan": "return np.full(shape, np.nan)",
    "complex": "return np.full(shape, 1j)",
    "bool": "return np.full(shape, True)",
}
FORGED = {  # the same, with the functions of WALK
    "forged flood": "while True: _forge(_dict(id=-1))",
    "forged drops": "while True:\n        time.sleep(0.1); _forge(_dict(id=-1))",
    "forged ahead": "for i in range(1000): _forge(_dict(id=_id() + i, value=0, args={'list': []}))",
    "forged arguments": "_forge(_dict(id=_id(), value=0, args=None)); time.sleep(1e6)",
    "forged error": "_forge(_dict(id=_id(), error=5, message={'list': []}, frames=7))",
    "forged frames": "_forge(_dict(id=_id(), error='E', message='', frames={'list': [1, 2]}))",
    "forged opaque": "_forge(_dict(id=_id(), value={'opaque': [1, {'list': []}]}, args={'list': [0, 0]}))",
    "forged generator": "_forge(_dict(id=_id(), value={'generator': 3}, args={'list': []}))",
    "forged depth": "h = b'[' * 10**6; p = _pipe(); p.write(struct.pack('<QQ', len(h), 0) + h)\n"
                    "    p.flush()",
    "forged length": "p = _pipe(); p.write(struct.pack('<QQ', 2**62, 2**62)); p.flush()\n"
                     "    time.sleep(1e6)",
    "forged array": "b = io.BytesIO(); np.lib.format.write_array(b, np.array(['x']))\n"
                    "    _forge(_dict(id=_id(), value={'array': True}, args={'list': []}),"
                    " b.getvalue())",
    "frames": "for f in _frames():\n        for v in [*f.f_locals.values(), *f.f_globals.values()]:"
              "\n            if isinstance(v, dict) and 'unbroadcast' in v:\n"
              "                return v['unbroadcast'](g, shape)",
    "the hook's names": "for f in _frames():\n        f.f_globals.update(FORBIDDEN=(), WRITES=0,"
                        " READS=())\n    exec(open(PATH).read().partition('### CHECKS')[0], d := {})\n"
                        "    return d['unbroadcast'](g, shape)",
}
ABOVE = {  # code at the end of a file with wrong answers
    "the exercise": "exec(open(PATH).read().partition('### CHECKS')[0])",
    "the exercise, in place": "import os\nfd = os.open(os.path.dirname(PATH), os.O_RDONLY)\n"
                              "f = os.open(os.path.basename(PATH), os.O_RDONLY, dir_fd=fd)\n"
                              "exec(os.read(f, 10**6).decode().partition('### CHECKS')[0])",
    "the exercise, imported": "import importlib, sys\nfor n in [*sys.modules]:\n"
                              "    if n.startswith('minilora'): del sys.modules[n]\n"
                              "m = importlib.import_module('minilora.exercises.tasks.ex02_unbroadcast')\n"
                              "unbroadcast = m.unbroadcast",
    "a folder's descriptor": "import os, numpy\nfd = os.open(os.path.dirname(os.__file__), os.O_RDONLY)\n"
                             "f = os.open('/'.join(['..'] * 40) + PATH, os.O_RDONLY, dir_fd=fd)\n"
                             "exec(os.read(f, 10**6).decode().partition('### CHECKS')[0])",
    "a folder's descriptor, below": "import os\nfd = os.open(os.path.dirname(os.path.dirname(os.path.dirname("
                                    "PATH))), os.O_RDONLY)\n"
                                    "f = os.open('exercises/tasks/' + os.path.basename(PATH), 0, dir_fd=fd)\n"
                                    "exec(os.read(f, 10**6).decode().partition('### CHECKS')[0])",
    "a path that lies": "import os\nclass P(str):\n    def startswith(self, *a): return True\n"
                        "    def __str__(self): return os.__file__\n    __fspath__ = __add__ = __str__\n"
                        "    def split(self, *a): return os.__file__.split(*a)\n"
                        "    def partition(self, *a): return ('', '', '')\n"
                        "exec(open(P(PATH)).read().partition('### CHECKS')[0])",
    "a path that changes": "import os\nclass P:\n    n = 0\n    def __fspath__(self):\n        P.n += 1\n"
                           "        return PATH if P.n % 2 else os.__file__\n"
                           "f = os.open(P(), 0)\nexec(os.read(f, 10**6).decode().partition('### CHECKS')[0])",
    "a special file": "import os; os.mknod(NEIGHBOUR + '.fifo', 0o10666)",
    "a pipe with a name": "import os; os.mkfifo('pipe')",
    "a function kept in a set": "import os\n[f] = [f for f in os.supports_dir_fd if f.__name__ == 'mkfifo']\nf('pipe')",
    "a module again": "import sys\nfor n in ('posix', '_signal'): sys.modules.pop(n)\n"
                      "import posix; posix.mkfifo('pipe')",
    "a module again, below": "import _imp, importlib.machinery as m\nspec = m.ModuleSpec('posix', None)\n"
                             "p = _imp.create_builtin(spec); _imp.exec_builtin(p); p.mkfifo('pipe')",
    "a module under another name": "import importlib.machinery as m, importlib.util as u, sys\n"
                                   "old = sys.modules.pop('_ctypes')\n"
                                   "loader = m.ExtensionFileLoader('_x._ctypes', old.__file__)\n"
                                   "new = u.module_from_spec(u.spec_from_loader('_x._ctypes', loader))\n"
                                   "loader.exec_module(new); new.dlopen(None, 0)",
    "memory": "import ctypes\nctypes.memmove(id(np), id(ctypes), 16)",
    "memory, by NumPy": "c = np.zeros(1).ctypes\nctypes = vars(sys.modules[type(c).__module__])['ctypes']\n"
                        "ctypes.memmove(id(np), id(ctypes), 16)",
    "another's process": "import os\nfor p in range(1, 99999):\n    try: d = os.readlink(f'/proc/{p}/cwd')\n"
                         "    except FileNotFoundError: continue\n    os.utime(d)",
    "a history file": "import readline\nreadline.read_history_file(PATH)\n"
                      "t = '\\n'.join(readline.get_history_item(i) or '' for i in range(1, 99))\n"
                      "exec(t.partition('### CHECKS')[0])",
    "a loader": "import importlib.machinery as m\n"
                "unbroadcast = m.SourceFileLoader('x', PATH).load_module().unbroadcast",
    "memory of a file": "import numpy as np\nt = bytes(np.memmap(PATH, np.uint8, 'r')).decode()\n"
                        "exec(t.partition('### CHECKS')[0])",
    "a thread beside the hook": "import sys, threading, time\ndef look():\n    while True:\n"
                                "        for f in sys._current_frames().values():\n"
                                "            f.f_locals.update(good=True, inside=('/',))\n"
                                "threading.Thread(target=look, daemon=True).start()\n"
                                "exec(open(PATH).read().partition('### CHECKS')[0])",
    "the neighbour": "exec(open(NEIGHBOUR).read())",
    "another's folder": "import os; os.remove(NEIGHBOUR)",
    "its folder": "import os, shutil; shutil.rmtree(os.getcwd())",
    "patched paths": "import posixpath, os, stat\nposixpath._joinrealpath = lambda *a: (os.__file__, True)\n"
                     "posixpath.realpath = os.lstat = lambda *a, **k: os.__file__\n"
                     "exec(open(PATH).read().partition('### CHECKS')[0])",
    "patched builtins": "import builtins\nbuiltins.isinstance = lambda *a: False\n"
                        "builtins.any = builtins.all = lambda *a: True\n"
                        "open(NEIGHBOUR, 'w').write('gone')",
    "patched NumPy": "for n in ('allclose', 'array_equal', 'all', 'isnan'):\n"
                     "    setattr(np, n, lambda *a, **k: True)\n"
                     "np.abs = np.max = np.sum = lambda *a, **k: 0.0\n"
                     "np.testing.assert_allclose = lambda *a, **k: None",
    "patched modules": "import sys\nfor n in [*sys.modules]: sys.modules[n] = None",
    "patched json": "import json, struct\njson.dumps = lambda *a: '{}'\nstruct.pack = lambda *a: b''",
    "a process": "import subprocess; subprocess.Popen(['sleep', '1000'])",
    "a process, below": "import _posixsubprocess as p, os\nr, w = os.pipe()\n"
                        "p.fork_exec([b'sleep', b'1000'], [b'/bin/sleep'], True, (), None, None, -1,"
                        " -1, -1, -1, -1, -1, r, w, False, True, -1, None, None, None, -1, None, True)",
    "ctypes": "import ctypes; ctypes.pythonapi.fork()",
    "collected": "import gc\nfor o in gc.get_objects(): del o",
    "from outside": "import hypothesis",
    "sleeps above": "import time; time.sleep(1e6)",
    "leaves above": "import os; os._exit(0)",
}
TEXT = {
    "empty": b"", "no text": b"\xff\xfe\x00", "zeros": b"\0" * 100, "no Python": b"def (",
    "nested": b"x = " + b"(" * 5000 + b")" * 5000, "minus": b"x = " + b"-" * 200_000 + b"1",
    "long": b"x = 1" + b" + 1" * 100_000,
}
ALIKE = (  # close to another attack: the thorough run tries them
    "exit", "abort", "nearly too large", "slow", "thread", "closed", "text", "objects", "complex",
    "bool", "script", "forged error", "forged frames", "forged opaque", "forged generator",
    "forged length", "another's folder", "sleeps above", "leaves above", "zeros", "minus",
)
NAMES = ("Zoë Ångström", "=HYPERLINK(1)", "a,b;c", 'quote"d', "<script>alert(1)</script>",
         "new\nline")


def brief(number: str = "02", checks: int | None = None) -> book.Exercise:
    """An exercise with its first checks only, each on a few cases: for what no case changes."""
    of = book.exercise(number)
    few = (replace(one, examples=min(12, one.examples)) for one in of.checks[:checks])
    return replace(of, checks=tuple(few))


FEW = """
import dataclasses
for name, one in [*globals().items()]:
    if isinstance(one, kit.Check):
        globals()[name] = dataclasses.replace(one, examples=12)
del name, one
"""  # at the end of an exercise's file: each check has a few cases


def own(folder: Path, number: str, *without: str) -> None:
    """Write 02 as a teacher's own exercise with a few cases, and without some of its checks."""
    text = (book.TASKS / "ex02_unbroadcast.py").read_text("utf-8") + FEW
    gone = "".join(f"del {check}\n" for check in without)
    (folder / f"ex{number}_unbroadcast.py").write_text(text + gone, "utf-8")


def answer(body: str, above: str = "") -> str:
    """The stub of 02 with this body and a wrong answer; `above` follows at the end."""
    stub = book.exercise("02").stub()
    return stub.replace(book.TODO, f"{body}\n    return np.zeros(()) - 7") + "\n" + above


def hostile(neighbour: Path) -> dict[str, bytes]:
    """The source of each attack, by its name."""
    path = book.TASKS / "ex02_unbroadcast.py"
    known = f"import io\nPATH = {str(path)!r}\nNEIGHBOUR = {str(neighbour)!r}\n"
    sources = {name: answer(body) for name, body in BODY.items()}
    sources |= {name: answer(body, known + WALK) for name, body in FORGED.items()}
    sources |= {name: answer("pass", known + above) for name, above in ABOVE.items()}
    return {name: text.encode() for name, text in sources.items()} | TEXT


@functools.cache
def wrong(number: str, seed: int) -> dict[str, tuple[str, int]]:
    """Known mistakes as complete files with their points, where a file can contain the mistake."""
    of, files = book.exercise(number), {}
    checks = ast.parse(of.path.read_text("utf-8").partition(f"\n{book.CHECKS}\n")[2])
    banks = [
        n for n in checks.body if isinstance(n, ast.Assign) and ast.unparse(n.targets[0]) == "WRONG"
    ]
    helpers = [
        n for n in checks.body
        if isinstance(n, ast.Import) or (isinstance(n, ast.FunctionDef) and not n.decorator_list)
        or (isinstance(n, ast.ImportFrom) and not n.level
            and n.module.split(".")[0] not in ("hypothesis", "minilora"))  # neither is a student's
    ]
    above = "\n\n".join(map(ast.unparse, helpers))
    for function, known in zip(banks[0].value.keys, banks[0].value.values) if banks else ():
        for mistake, how in zip(known.keys, known.values) if isinstance(known, ast.Dict) else ():
            name, text = ast.literal_eval(function), ast.literal_eval(mistake)
            source = f"{of.solution()}\n{above}\n\ndef {name}(*args):\n    return ({ast.unparse(how)})(*args)\n"
            space: dict[str, object] = {"__name__": "student"}
            try:
                exec(source, space)
                here = judging.judge_here(of, {f: space[f] for f in of.functions}, seed=seed)
            except Exception:
                continue
            if here.mistakes == (text,) and judging._problem(of, source) is None:
                files[text] = source, here.points
    return files


def make(folder: Path, students: int, seed: int, numbers: list[str]) -> dict[str, dict[str, object]]:
    """Write a class into this folder; return (points, mistakes) for each student and exercise."""
    rng = random.Random(seed)
    banks = {number: wrong(number, seed) for number in numbers}
    bad = [*hostile(folder / "student 000" / book.exercise("02").name).items()]
    planted: dict[str, dict[str, object]] = {}
    for i in range(students):
        name = f"student {i:03}" + (f" {NAMES[i % len(NAMES)]}" if i % 9 == 5 else "")
        name = name.replace("/", "|")
        (folder / name).mkdir()
        planted[name] = {}
        for number in numbers:
            of = book.exercise(number)
            kind = rng.choice(("right", "wrong", "wrong", "stub", "none"))
            if i == 0:
                kind = "right"
            elif number == "02" and i % 3 == 1:
                kind = "hostile"
            if kind == "none":
                planted[name][number] = (0, ())
                continue
            points, mistakes, text = 0, (), of.stub().encode()
            if kind == "right":
                points, text = of.points, of.solution().encode()
            elif kind == "wrong" and banks[number]:
                mistake = rng.choice(sorted(banks[number]))
                source, points = banks[number][mistake]
                mistakes, text = (mistake,), source.encode()
            elif kind == "hostile":
                text = bad[i // 3 % len(bad)][1]
            (folder / name / of.name).write_bytes(text)
            planted[name][number] = (points, mistakes)
    return planted


def got(of: grading.Class) -> dict[str, dict[str, object]]:
    return {
        pupil.name: {one.number: (one.points, one.mistakes) for one in pupil.results}
        for pupil in of.pupils
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--students", type=int, default=100)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--html", type=Path)
    parser.add_argument("--only", default=",".join(book.paths()), help="numbers, separated by commas")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        planted = make(Path(folder), args.students, args.seed, args.only.split(","))
        start, cpu = time.monotonic(), os.times()
        of = grading.grade(folder, args.seed, args.jobs, only=args.only.split(","))
        seconds = time.monotonic() - start
    if args.html:
        args.html.write_bytes(classpage.page(of))
    differing = [
        (name, number, planted[name][number], one) for name, row in got(of).items()
        for number, one in row.items() if one != planted[name][number]
    ]
    for line in differing:
        print(*line)
    files = sum(len(row) for row in planted.values())
    now = os.times()
    cpu_s = now.children_user + now.children_system - cpu.children_user - cpu.children_system
    print(f"{len(planted)} students, {files} results, {len(differing)} other than planted; "
          f"{seconds:.0f} s with {args.jobs} jobs, {cpu_s:.0f} s of processor time")
    raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
