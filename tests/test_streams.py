"""streams: what cannot be shown changes no exit code, no file, and leaves no traceback."""

import errno
import io
import os
import shlex
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from conftest import BUILDS, THOROUGH, kept

import minilora as ml
from minilora import cli, lora
from minilora.accounting import claims
from minilora.cli import command_line, streams, tutorials
from minilora.exercises import desk, dev, grading

pytestmark = pytest.mark.usefixtures("numpy_only")


class Failing(io.RawIOBase):
    """A file that takes `room` bytes, and then ends with this error."""

    def __init__(self, number: int, room: int = 0) -> None:
        self.number, self.room = number, room

    def writable(self):
        return True

    def write(self, data):
        self.room -= len(data)
        if self.room < 0:
            raise OSError(self.number, os.strerror(self.number))
        return len(data)


def text(raw, encoding="utf-8", **how):
    return io.TextIOWrapper(io.BufferedWriter(raw), encoding, **how)


def closed():
    stream = text(io.BytesIO())
    stream.close()
    return stream


STREAMS = {  # what stdout and stderr are
    "ascii": lambda: text(io.BytesIO(), "ascii"),
    "cp1252": lambda: text(io.BytesIO(), "cp1252", errors="strict"),
    "surrogates": lambda: text(io.BytesIO(), "ascii", errors="surrogateescape"),
    "none": lambda: None,
    "closed": closed,
    "full": lambda: text(Failing(errno.ENOSPC)),
    "full later": lambda: text(Failing(errno.ENOSPC, 100)),
    "head": lambda: text(Failing(errno.EPIPE, 100)),
}
SMALL = "--steps 1 --batch 1 --window 8 --checks 1"
SWEEP = "\N{GREEK SMALL LETTER ALPHA}.toml"
RUNS = {  # command -> (a line that is cheap to run, its exit code)
    "finetune": (f"words.txt {SMALL} --out tuned.npz", 0),
    "sweep": (f"{SWEEP} --dry-run", 0),
    "generate": ("--tokens 1 --prompt \N{GREEK CAPITAL LETTER DELTA}", 0),
    "merge": ("--adapter fox.npz --out merged.npz", 0),
    "account": ("gpt2 --window 4", 0),
    "reproduce": ("counts", 0),
    "info": ("fox.npz", 0),
    "bench": ("--shapes round", 2),
    "pretrain": ("--out base.npz", 0),
    "tutorials list": ("", 0),
    "tutorials run": ("02", 0),
    "tutorials notebook": ("07", 0),
    "tutorials build": ("--plain", 2),
    "tutorials serve": ("--port 0", 0),
    "ex init": ("class --seed 1", 0),
    "ex status": ("", 0),
    "ex check": ("02", 1),
    "ex watch": ("", 0),
    "ex hint": ("02", 0),
    "ex solution": ("02", 2),
    "ex reset": ("02", 0),
    "ex milestone": ("05", 2),
    "ex grade": ("submissions --csv points.csv", 0),
    "ex teach": ("", 0),
    "ex dev check": ("99", 2),
    "ex dev messages": ("02", 0),
    "ex dev new": ("21_mine", 0),
}


def walked(i):
    """Two pairs of streams for each command, others for its neighbours; all in the thorough run."""
    return [*STREAMS] if THOROUGH else [*STREAMS][i % 4::4]


DEAR = ("ex check", "merge", "account", "reproduce")  # with one stream, but for the thorough run


def test_every_command_is_walked():
    assert RUNS.keys() == {parser.name for parser in command_line().leaves()}


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    folder = tmp_path_factory.mktemp("shelf")
    model = ml.load_base()
    lora.attach(model, ml.LoRAConfig(targets="0.attn.q"), name="fox", rng=0)
    lora.save(model, folder / "fox.npz")
    desk.begin(folder / "exercises", 1, None)
    return folder


@pytest.fixture
def place(tmp_path, shelf, monkeypatch):
    """A folder with all that the lines name; what takes long in them is left out."""
    monkeypatch.chdir(tmp_path)
    os.symlink(shelf / "fox.npz", "fox.npz")
    Path(SWEEP).write_text("ranks = [1, 2]\n[finetune]\ntext = 'words.txt'\nwindow = 8\n")
    Path("words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40, "utf-8")
    Path("submissions", "Zo\N{LATIN SMALL LETTER E WITH DIAERESIS}").mkdir(parents=True)
    for name in (desk.PROGRESS, "ex02_unbroadcast.py"):
        Path(name).write_bytes((shelf / "exercises" / name).read_bytes())
    for table in ("ROWS", "SIZES", "RATIOS"):
        monkeypatch.setattr(claims, table, getattr(claims, table)[:1])
    Path("02_short.py").write_text("for i in range(99):\n    print('\\u03b1', i)\n")
    chapter = SimpleNamespace(path=Path("02_short.py").absolute(), number="02")
    run_chapter = tutorials.site.chapter
    monkeypatch.setattr(
        tutorials.site, "chapter", lambda which: chapter if which == "02" else run_chapter(which))
    monkeypatch.setattr(dev, "messages", lambda _: {"a mistake": "\N{GREEK SMALL LETTER ALPHA}"})

    def pretrain(out, *, say, **_):
        say("\N{GREEK SMALL LETTER ALPHA}")
        out.write_bytes(b"a model")
        return None, ml.History(held_out=[(0, 1.0)])

    def grade(*_, **__):
        return grading.Class(1, (), ())

    monkeypatch.setattr("minilora.pretrain.pretrain", pretrain)
    monkeypatch.setattr(grading, "grade", grade)
    monkeypatch.setattr(tutorials.folder, "is_site", lambda out: True)
    monkeypatch.setattr(tutorials.http.server.ThreadingHTTPServer, "serve_forever", lambda _: None)
    monkeypatch.setattr(desk, "changes", lambda _: [])
    return tmp_path


def outcome(monkeypatch, line, out, err):
    """The exit code of a line with these streams, and the files that it wrote.

    The caller changes to a folder of its own: beside the sources, other tests write files as well.
    """
    before = {path for path in Path().rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", out)
        patch.setattr("sys.stderr", err)
        try:
            code = cli.main(shlex.split(line))
        except SystemExit as stop:  # --help
            code = stop.code
        assert (sys.stdout, sys.stderr) == (out, err)
    new = [path for path in Path().rglob("*")
           if path.is_file() and path not in before and path.parent.name != "__pycache__"]
    return code, {str(path): path.stat().st_size for path in new}


@pytest.mark.parametrize("command", RUNS)
def test_the_exit_code_and_the_files_are_those_of_the_work(command, place, monkeypatch, shelf):
    line, code = RUNS[command]
    if command == "tutorials notebook" and not BUILDS:
        pytest.skip("needs pip install '.[tutorials]'")
    good = None
    names = walked([*RUNS].index(command))
    for name in [None, *(names if THOROUGH or command not in DEAR else names[:1])]:
        for more in ("", " --json") if name in (None, "ascii", "head") else ("",):
            if command == "ex grade" and more:
                continue  # there it names a file
            out, err = (STREAMS[name]() if name else text(io.BytesIO()) for _ in range(2))
            at = place / f"{name} {more}"
            at.mkdir()
            for path in place.iterdir():
                if path.name in ("fox.npz", "words.txt", "submissions", desk.PROGRESS,
                                 "ex02_unbroadcast.py", SWEEP):
                    os.symlink(path, at / path.name)
            monkeypatch.chdir(at)
            got = outcome(monkeypatch, f"{command} {line}{more}", out, err)
            good = good or got
            assert got == good and got[0] == code, (name, more, err and not err.closed and
                                                    getattr(err.buffer.raw, "getvalue", str)())


@pytest.mark.parametrize("command", ["", "tutorials", "ex", "ex dev", *RUNS])
def test_help_is_shown_as_far_as_it_can_be(command, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name in walked(len(command)):
        out, make = STREAMS[name](), STREAMS[name]
        assert outcome(monkeypatch, f"{command} --help", out, make()) == (0, {})
        if name in ("ascii", "cp1252", "surrogates"):
            shown = out.buffer.raw.getvalue().decode(out.encoding)
            assert shown.startswith(f"usage: minilora {command}".rstrip())
            assert ("?W" in shown) == (command in ("finetune", "account"))


def test_what_is_lost_is_said_unless_its_reader_left(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for name, words in {
        "full": "warning: the output could not be shown: No space left", "closed": "closed file",
        "head": "", "none": "", "ascii": "",
    }.items():
        err = text(io.BytesIO())
        assert outcome(monkeypatch, "info", STREAMS[name](), err) == (0, {})
        said = err.buffer.raw.getvalue().decode()
        assert (words in said and said.count("\n") == 1) if words else not said


def test_a_stream_is_written_to_until_it_fails_and_passes_everything_else_on():
    out = text(Failing(errno.EPIPE, 3))
    stream = streams.Stream(out)
    assert stream.buffer is out.buffer and stream.encoding == "utf-8" and not stream.isatty()
    assert stream.write("ab") == 2 and stream.writable()
    stream.flush()
    assert stream.error is None
    assert stream.write("cd") == 2
    stream.flush()
    assert isinstance(stream.error, BrokenPipeError) and stream.stream is None
    assert stream.write("more") == 4 and not stream.isatty()
    with pytest.raises(io.UnsupportedOperation):
        stream.fileno()
    assert streams.shown("aΔ\udcff", "cp1252") == "a??"


def real(command: str, **variables: str) -> subprocess.CompletedProcess:
    """Run a line of the shell; `minilora` is this package."""
    return subprocess.run(
        ["bash", "-c", f"set -o pipefail; minilora() {{ {shlex.quote(sys.executable)} $FLAGS -m "
         f'minilora "$@"; }}; {command}'],
        capture_output=True, encoding="latin-1", check=False,
        env={**os.environ, "PYTHONPATH": str(Path(ml.__file__).parent.parent), "FLAGS": "",
             "PYTHONUNBUFFERED": "", **variables},
    )


C = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}


SHELL = [
    ("minilora finetune --help", {"PYTHONIOENCODING": "cp1252"}, 0),
    ("minilora account gpt2 --window 4", C, 0),
    ("minilora account gpt2 --window 4 >&-", {}, 0),
    ("minilora info >&- 2>&- <&-", {}, 0),
    ("minilora info >/dev/full", {}, 0),
    ("minilora info --zzz 2>/dev/full", {}, 2),
    ("minilora info --zzz >&- 2>&-", {}, 2),
    ("minilora tutorials run 02 | head -1", {}, 0),
    ("minilora --help | true", {}, 0),
    ("minilora generate --tokens 2", {"FLAGS": "-OO"}, 0),
    (f"cd $HOME; minilora finetune words.txt {SMALL} >&- 2>&- && minilora info adapter.npz", {}, 0),
]


@pytest.mark.skipif(os.name != "posix", reason="the shell's redirections")
@pytest.mark.parametrize(("command", "variables", "code"), kept(SHELL, *SHELL[:9:4]))
def test_streams_of_the_shell(command, variables, code, tmp_path):
    if "/dev/full" in command and not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full")
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 40)
    done = real(command, HOME=str(tmp_path), **variables)
    assert done.returncode == code, done.stderr
    assert not any(word in done.stderr for word in ("Traceback", "codec", "fails", "Exception"))


@pytest.mark.skipif(os.name != "posix", reason="the shell's redirections")
def test_no_file_gets_the_number_of_a_closed_stream(tmp_path):
    """Libraries and child processes write to 1 and 2, whatever is there."""
    code = ("from minilora.cli import streams\nwith streams.safe():\n"
            "    file = open('out.txt', 'w'); print(file.fileno(), file=file)")
    done = real(f"cd $HOME; $PYTHON -c {shlex.quote(code)} <&- >&- 2>&-", HOME=str(tmp_path),
                PYTHON=sys.executable)
    assert done.returncode == 0 and int((tmp_path / "out.txt").read_text()) > 2


def test_help_titles_and_docs_are_the_same_without_docstrings(capsys, monkeypatch):
    """`python -OO` drops docstrings."""
    code = (
        "from minilora.cli import command_line as c; from minilora.site import names; "
        "from minilora.exercises.book import exercises; "
        "print([p.format_help() for p in c().leaves()], c().format_help()); "
        "print([k.title for e in exercises() for k in e.checks]); "
        "print([(e.doc, [m.doc for m in e.methods]) for s in names.sections() for e in s.entries])"
    )
    monkeypatch.setattr(sys, "argv", ["-c"])
    exec(code, {})
    with_docs = capsys.readouterr().out
    without = real(f"$PYTHON -OO -c {shlex.quote(code)}", PYTHON=sys.executable,
                   PYTHONIOENCODING="utf-8")
    assert without.returncode == 0, without.stderr
    assert with_docs == without.stdout.encode("latin-1").decode() and (
        "Continue a prompt" in with_docs)


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_progress_names_the_part_and_estimates_the_rest(stream, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr("sys.stderr", stream())
    with streams.Progress(10) as begins:
        for what in "abc":
            begins(what)
            now[0] += 8
        begins()
    got = sys.stderr.getvalue()
    if stream is Terminal:
        lines = ["1 of 10: a", "2 of 10: b, about 1:12 left", "3 of 10: c, about 1:04 left",
                 "4 of 10, about 0:56 left", ""]
        assert got == "".join(f"\r{line}\x1b[K" for line in lines)
    else:  # a line every ten seconds at most
        assert got == "3 of 10: c, about 1:04 left\n"
