"""atomic: a file is written completely or not at all, and leftovers of killed writers go."""

import errno
import os
import signal
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from minilora.files import atomic
from minilora.files.atomic import check, writing

posix = pytest.mark.skipif(os.name != "posix", reason="needs POSIX")


pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture
def existing(tmp_path):
    """An existing file."""
    path = tmp_path / "kept.bin"
    path.write_bytes(b"old")
    return path


def write(path, what=b"new"):
    with writing(path) as file:
        file.write(what)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("given", [str, Path])
def test_a_file_has_its_name_after_the_block_and_not_before(existing, given):
    new = existing.with_name("new.bin")
    for path, before in ((existing, {"kept.bin": b"old"}), (new, {"kept.bin": b"new"})):
        with writing(given(path)) as file:
            file.write(b"new")
            file.flush()
            assert {k: v for k, v in contents(existing.parent).items() if "tmp" not in k} == before
        assert path.read_bytes() == b"new"
    assert contents(existing.parent) == {"kept.bin": b"new", "new.bin": b"new"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), OSError("no number"),
                                   OSError(errno.ENOENT, "another", "words.txt")])
def test_an_error_in_the_block_changes_nothing(existing, error, old):
    if not old:
        existing.unlink()
    before = contents(existing.parent)
    with pytest.raises(type(error)) as caught, writing(existing) as file:
        file.write(b"half of it")
        raise error
    assert caught.value is error and contents(existing.parent) == before


@pytest.mark.parametrize("name", ["fsync", "replace", "chmod"])
def test_a_failure_at_any_step_changes_nothing(existing, monkeypatch, name):
    def fails(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic.os, name, fails)
    with pytest.raises(OSError, match=r"input/output error.*unchanged: write to another") as got:
        write(existing)
    assert got.value.filename == str(existing) and got.value.errno == errno.EIO
    monkeypatch.undo()
    assert contents(existing.parent) == {"kept.bin": b"old"}


def test_contents_reach_the_disk_before_the_name_does(existing, monkeypatch):
    happened = []
    sync, replace = os.fsync, os.replace

    def fsync(handle):
        of = os.fstat(handle)
        folder = stat.S_ISDIR(of.st_mode)
        assert not folder or os.path.samestat(of, existing.parent.stat())
        happened.append("folder" if folder else ("sync", of.st_size))
        sync(handle)

    def rename(source, target):
        happened.append(("replace", os.stat(source).st_size))
        assert Path(source).parent == Path(target).parent  # one file system: it is atomic
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    monkeypatch.setattr(atomic.os, "replace", rename)
    write(existing, b"123")
    assert happened == [("sync", 3), ("replace", 3)] + ["folder"] * (os.name == "posix")


FULL = """
import resource, signal, sys
from minilora.files.atomic import writing
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]),) * 2)
try:
    with writing(sys.argv[1]) as file:
        for _ in range(20):
            file.write(b"x" * 1000)
except OSError as error:
    print(error.filename, error.errno, error.strerror, sep="|")
"""


@posix
@pytest.mark.parametrize("limit", [0, 5000])  # nothing fits; the buffer's first load does not
def test_a_full_disk_raises_with_the_name_of_the_file(existing, limit):
    command = [sys.executable, "-c", FULL, str(existing), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, number, message = done.stdout.strip().split("|")
    assert not done.stderr and (name, int(number)) == (str(existing), errno.EFBIG)
    assert "and the old file is unchanged: make room" in message
    assert contents(existing.parent) == {"kept.bin": b"old"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_no_space_left_raises_with_the_name_of_the_file(existing):
    match = r"no space left on device.*make room"
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match=match) as caught, writing(existing):
        os.write(full, b"x")
    os.close(full)
    assert caught.value.filename == str(existing)
    assert contents(existing.parent) == {"kept.bin": b"old"}


@posix
def test_a_link_stays_a_link(tmp_path):
    (tmp_path / "far").mkdir()
    for name in ("far/old", "far/new"):
        link = tmp_path / "link.bin"
        link.unlink(missing_ok=True)
        link.symlink_to(name)
        if "old" in name:
            (tmp_path / name).write_bytes(b"old")
        check(link, ".bin")
        write(link)
        assert link.is_symlink() and os.readlink(link) == name
        assert (tmp_path / name).read_bytes() == b"new"
    assert set(contents(tmp_path / "far")) == {"old", "new"}


@posix
def test_a_mode_is_preserved_and_a_new_file_follows_the_umask(tmp_path):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    old = tmp_path / "old.bin"
    for mask in (0o000, 0o022, 0o077):
        before = os.umask(mask)
        try:
            for bits in (0o600, 0o664, 0o755):
                old.write_bytes(b"old")
                old.chmod(bits)
                with writing(old) as file:  # the temporary file has the mode, too
                    assert mode(Path(file.name)) == bits
                assert mode(old) == bits
            write(tmp_path / f"{mask}.bin")
            assert mode(tmp_path / f"{mask}.bin") == 0o666 & ~mask
        finally:
            assert os.umask(before) == mask


HANGS = """
import sys, time
from minilora.files.atomic import writing
with writing(sys.argv[1]) as file:
    file.write(b"half of it")
    file.flush()
    print(flush=True)
    time.sleep(60)
"""


@pytest.fixture
def hanging():
    """A function that starts a process and returns while it writes a file."""
    started = []

    def hang(path):
        process = subprocess.Popen([sys.executable, "-c", HANGS, path], stdout=subprocess.PIPE)
        started.append(process)
        process.stdout.readline()
        return process

    yield hang
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@posix
def test_a_killed_writers_file_is_deleted_and_a_running_ones_is_not(existing, hanging):
    killed, living = hanging(existing), hanging(existing)
    other = hanging(existing.with_name("other.bin"))
    for process in (killed, other):
        process.send_signal(signal.SIGKILL)
        process.wait()
    mine = existing.with_name(".kept.bin.mine.tmp")
    mine.write_bytes(b"not of this module")
    assert sum(b"half" in data for data in contents(existing.parent).values()) == 3
    assert existing.read_bytes() == b"old"
    with writing(existing) as outer:  # a writer in this process is running, too
        outer.write(b"outer")
        write(existing, b"inner")
        assert existing.read_bytes() == b"inner"
    left = contents(existing.parent)
    assert left.pop("kept.bin") == b"outer" and left.pop(mine.name)
    assert sorted(name.split(".")[1] for name in left) == ["kept", "other"]  # living; another name
    living.kill()
    living.wait()
    write(existing)
    assert not list(existing.parent.glob(".kept.bin.????????????????.tmp"))


def test_without_locks_only_old_temporary_files_are_deleted(existing, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    old, young = (existing.with_name(f".kept.bin.{c * 16}.tmp") for c in "ab")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    write(existing)
    assert contents(existing.parent) == {"kept.bin": b"new", young.name: b"half"}


def test_a_temporary_file_deleted_before_its_lock_is_created_again(existing, monkeypatch):
    flock, swept = atomic.fcntl and atomic.fcntl.flock, []
    if flock is None:
        pytest.skip("needs locks")

    def late(file, how):
        if not swept:
            swept.append(file.name)
            os.unlink(file.name)
        flock(file, how)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    write(existing)
    assert swept and contents(existing.parent) == {"kept.bin": b"new"}


def test_concurrent_writers_leave_one_complete_file(existing):
    def many(i):
        for _ in range(20):
            write(existing, bytes([i]) * 100_000)

    writers = [threading.Thread(target=many, args=(i,)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    left = contents(existing.parent)
    assert list(left) == ["kept.bin"] and len(left["kept.bin"]) == 100_000
    assert len(set(left["kept.bin"])) == 1


REFUSED = {
    "": "'' is not a file name: give one, such as",
    ".": ". is a folder: give the name of a file in it",
    "folder": "folder is a folder: give the name of a file in it",
    "a": "a: give a name that ends in .npz or .NPZ, such as a.npz",
    "folder/a.txt": "a.txt: give a name that ends in .npz or .NPZ, such as folder/a.npz",
    "a.npz.gz": "give a name that ends in .npz",
    ".npz": ".npz: give a name that ends in .npz or .NPZ, such as out.npz",
    "none/a.npz": "none/a.npz: none is not a folder: create it first, or give another folder",
    "kept.bin/a.npz": "kept.bin/a.npz: kept.bin is not a folder",
    f"{'a' * 300}.npz": "cannot be written (file name too long): give another name, or a folder",
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_path_that_cannot_be_written_is_refused_with_a_remedy(existing, name, monkeypatch):
    monkeypatch.chdir(existing.parent)
    Path("folder").mkdir()
    before = sorted(existing.parent.rglob("*"))
    with pytest.raises(ValueError) as caught:
        check(name, ".npz", ".NPZ")
    assert REFUSED[name] in str(caught.value).replace(os.sep, "/")
    assert sorted(existing.parent.rglob("*")) == before
    if "ends" not in REFUSED[name]:
        with pytest.raises((ValueError, OSError)) as caught, writing(name):
            pytest.fail("it is written")
        assert getattr(caught.value, "filename", name) == name  # not the temporary file's
    assert sorted(existing.parent.rglob("*")) == before


def test_a_path_that_can_be_written_passes_and_nothing_is_left(existing):
    for path in (existing, existing.with_name("new.bin")):
        check(path, ".npz", ".bin")
        check(str(path))
        with writing(path, ".bin"), pytest.raises(ValueError, match="ends in"):
            check(path, ".npz")
        assert path.exists()
        check(path)
    assert contents(existing.parent) == {"kept.bin": b"", "new.bin": b""}


@posix
def test_a_link_to_nowhere_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "link.npz").symlink_to("nowhere/a.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"link.npz: .*nowhere is not a folder: create it first"):
        check(tmp_path / "link.npz")
    with pytest.raises(ValueError, match="exists and may not be replaced: give another name"):
        check(tmp_path / "pipe.npz")


def test_a_file_that_may_not_be_written_is_not_replaced(existing, monkeypatch):
    existing.chmod(0o444)
    access = os.access
    monkeypatch.setattr(  # as root one may write everything
        atomic.os, "access", lambda p, how: access(p, how) and bool(os.stat(p).st_mode & 0o200)
    )
    for refused in (check, lambda path: write(path)):
        with pytest.raises(ValueError, match="exists and may not be replaced"):
            refused(existing)
    assert contents(existing.parent) == {"kept.bin": b"old"}


# A file whose open() was interrupted after it had opened it is closed by Python, with a warning
@pytest.mark.filterwarnings("ignore:Exception ignored in. <_io.FileIO")
def test_an_interrupt_at_any_line_leaves_the_old_file_or_the_new_one_alone(tmp_path):
    """Even while the exception, and with it every frame that it passed, is still at hand."""
    from test_interrupts import Interrupt, traced

    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")
    lines = traced(lambda: write(path), 0, "line")
    seen = set()
    for at in range(1, lines + 1):
        path.write_bytes(b"old")
        with pytest.raises(Interrupt) as held:
            traced(lambda: write(path), at, "line")
        assert held and [*contents(tmp_path)] == ["notes.txt"], at
        seen |= {*contents(tmp_path).values()}
    assert seen == {b"old", b"new"}


def test_what_the_block_raises_inside_a_handler_keeps_the_old_file(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_bytes(b"old")
    try:
        raise KeyError("around")
    except KeyError as around:
        with pytest.raises(ValueError, match="inside"), writing(path) as file:
            file.write(b"new")
            raise ValueError("inside") from around
        with pytest.raises(KeyError) as again, writing(path):
            raise KeyError("another") from around
        assert again.value is not around and path.read_bytes() == b"old"
        with writing(path) as file:
            file.write(b"new")
    assert path.read_bytes() == b"new"
