"""Writing: all of it or nothing, links and modes kept, what a killed writer left is swept."""

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

posix = pytest.mark.skipif(os.name != "posix", reason="it is about POSIX")


pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture
def kept(tmp_path):
    """A file that is there already."""
    path = tmp_path / "kept.bin"
    path.write_bytes(b"old")
    return path


def write(path, what=b"new"):
    with writing(path) as file:
        file.write(what)


def there(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("given", [str, Path])
def test_what_is_written_is_there_afterwards_and_not_before(kept, given):
    new = kept.with_name("new.bin")
    for path, before in ((kept, {"kept.bin": b"old"}), (new, {"kept.bin": b"new"})):
        with writing(given(path)) as file:
            file.write(b"new")
            file.flush()
            assert {k: v for k, v in there(kept.parent).items() if "tmp" not in k} == before
        assert path.read_bytes() == b"new"
    assert there(kept.parent) == {"kept.bin": b"new", "new.bin": b"new"}


@pytest.mark.parametrize("old", [True, False])
@pytest.mark.parametrize("error", [ValueError(), KeyboardInterrupt(), OSError("no number"),
                                   OSError(errno.ENOENT, "another", "words.txt")])
def test_what_is_raised_inside_leaves_all_as_it_was(kept, error, old):
    if not old:
        kept.unlink()
    before = there(kept.parent)
    with pytest.raises(type(error)) as caught, writing(kept) as file:
        file.write(b"half of it")
        raise error
    assert caught.value is error and there(kept.parent) == before


@pytest.mark.parametrize("name", ["fsync", "replace", "chmod"])
def test_a_failure_at_any_step_leaves_all_as_it_was(kept, monkeypatch, name):
    def fails(*args):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(atomic.os, name, fails)
    with pytest.raises(OSError, match=r"input/output error.*is as it was: write to another") as got:
        write(kept)
    assert got.value.filename == str(kept) and got.value.errno == errno.EIO
    monkeypatch.undo()
    assert there(kept.parent) == {"kept.bin": b"old"}


def test_all_of_it_is_on_the_disk_before_it_has_its_name_and_then_the_name(kept, monkeypatch):
    happened = []
    sync, replace = os.fsync, os.replace

    def fsync(handle):
        of = os.fstat(handle)
        folder = stat.S_ISDIR(of.st_mode)
        assert not folder or os.path.samestat(of, kept.parent.stat())
        happened.append("folder" if folder else ("sync", of.st_size))
        sync(handle)

    def rename(source, target):
        happened.append(("replace", os.stat(source).st_size))
        assert Path(source).parent == Path(target).parent  # one file system: it is atomic
        replace(source, target)

    monkeypatch.setattr(atomic.os, "fsync", fsync)
    monkeypatch.setattr(atomic.os, "replace", rename)
    write(kept, b"123")
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
def test_a_full_disk_is_told_in_the_name_of_the_file(kept, limit):
    command = [sys.executable, "-c", FULL, str(kept), str(limit)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    name, number, said = done.stdout.strip().split("|")
    assert not done.stderr and (name, int(number)) == (str(kept), errno.EFBIG)
    assert "what was there is as it was: make room" in said
    assert there(kept.parent) == {"kept.bin": b"old"}


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is full")
def test_no_space_left_is_told_in_the_name_of_the_file(kept):
    match = r"no space left on device.*make room"
    full = os.open("/dev/full", os.O_WRONLY)
    with pytest.raises(OSError, match=match) as caught, writing(kept):
        os.write(full, b"x")
    os.close(full)
    assert caught.value.filename == str(kept) and there(kept.parent) == {"kept.bin": b"old"}


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
    assert set(there(tmp_path / "far")) == {"old", "new"}


@posix
def test_a_mode_is_kept_and_a_new_file_has_what_the_umask_leaves(tmp_path):
    def mode(path):
        return stat.S_IMODE(path.stat().st_mode)

    old = tmp_path / "old.bin"
    for mask in (0o000, 0o022, 0o077):
        before = os.umask(mask)
        try:
            for kept in (0o600, 0o664, 0o755):
                old.write_bytes(b"old")
                old.chmod(kept)
                with writing(old) as file:  # nobody else may read it meanwhile, either
                    assert mode(Path(file.name)) == kept
                assert mode(old) == kept
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
    """A function that starts a process which is in the middle of writing a file."""
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
def test_what_a_killed_writer_left_is_swept_and_a_living_one_is_left_alone(kept, hanging):
    killed, living, other = hanging(kept), hanging(kept), hanging(kept.with_name("other.bin"))
    for process in (killed, other):
        process.send_signal(signal.SIGKILL)
        process.wait()
    mine = kept.with_name(".kept.bin.mine.tmp")
    mine.write_bytes(b"not of this module")
    assert sum(b"half" in held for held in there(kept.parent).values()) == 3
    assert kept.read_bytes() == b"old"
    with writing(kept) as outer:  # a writer in this process lives, too
        outer.write(b"outer")
        write(kept, b"inner")
        assert kept.read_bytes() == b"inner"
    left = there(kept.parent)
    assert left.pop("kept.bin") == b"outer" and left.pop(mine.name)
    assert sorted(name.split(".")[1] for name in left) == ["kept", "other"]  # living; another name
    living.kill()
    living.wait()
    write(kept)
    assert not list(kept.parent.glob(".kept.bin.????????????????.tmp"))


def test_without_locks_only_what_is_long_forgotten_is_swept(kept, monkeypatch):
    monkeypatch.setattr(atomic, "fcntl", None)
    old, young = (kept.with_name(f".kept.bin.{c * 16}.tmp") for c in "ab")
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    write(kept)
    assert there(kept.parent) == {"kept.bin": b"new", young.name: b"half"}


def test_a_temporary_that_is_swept_before_it_is_locked_is_made_again(kept, monkeypatch):
    flock, swept = atomic.fcntl and atomic.fcntl.flock, []
    if flock is None:
        pytest.skip("there are no locks")

    def late(file, how):
        if not swept:
            swept.append(file.name)
            os.unlink(file.name)
        flock(file, how)

    monkeypatch.setattr(atomic.fcntl, "flock", late)
    write(kept)
    assert swept and there(kept.parent) == {"kept.bin": b"new"}


def test_writers_at_once_leave_one_whole_file(kept):
    def many(i):
        for _ in range(20):
            write(kept, bytes([i]) * 100_000)

    writers = [threading.Thread(target=many, args=(i,)) for i in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    left = there(kept.parent)
    assert list(left) == ["kept.bin"] and len(left["kept.bin"]) == 100_000
    assert len(set(left["kept.bin"])) == 1


REFUSED = {
    "": "'' is no name of a file: give one, such as",
    ".": ". is a folder: give the name of a file in it",
    "folder": "folder is a folder: give the name of a file in it",
    "a": "a: give a name that ends in .npz or .NPZ, such as a.npz",
    "folder/a.txt": "a.txt: give a name that ends in .npz or .NPZ, such as folder/a.npz",
    "a.npz.gz": "give a name that ends in .npz",
    ".npz": ".npz: give a name that ends in .npz or .NPZ, such as out.npz",
    "none/a.npz": "none/a.npz: none is not a folder: create it first, or give another",
    "kept.bin/a.npz": "kept.bin/a.npz: kept.bin is not a folder",
    f"{'a' * 300}.npz": "cannot be written (file name too long): give another name, or a folder",
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_written_is_refused_in_plain_words(kept, name, monkeypatch):
    monkeypatch.chdir(kept.parent)
    Path("folder").mkdir()
    before = sorted(kept.parent.rglob("*"))
    with pytest.raises(ValueError) as caught:
        check(name, ".npz", ".NPZ")
    assert REFUSED[name] in str(caught.value).replace(os.sep, "/")
    assert sorted(kept.parent.rglob("*")) == before
    if "ends" not in REFUSED[name]:
        with pytest.raises((ValueError, OSError)) as caught, writing(name):
            pytest.fail("it is written")
        assert getattr(caught.value, "filename", name) == name  # the temporary file has no say
    assert sorted(kept.parent.rglob("*")) == before


def test_what_can_be_written_is_not_refused_and_nothing_is_left(kept):
    for path in (kept, kept.with_name("new.bin")):
        check(path, ".npz", ".bin")
        check(str(path))
        with writing(path, ".bin"), pytest.raises(ValueError, match="ends in"):
            check(path, ".npz")
        assert path.exists()
        check(path)
    assert there(kept.parent) == {"kept.bin": b"", "new.bin": b""}


@posix
def test_a_link_to_nowhere_and_a_pipe_are_refused(tmp_path):
    (tmp_path / "link.npz").symlink_to("nowhere/a.npz")
    os.mkfifo(tmp_path / "pipe.npz")
    with pytest.raises(ValueError, match=r"link.npz: .*nowhere is not a folder: create it first"):
        check(tmp_path / "link.npz")
    with pytest.raises(ValueError, match="is there and may not be replaced: give another name"):
        check(tmp_path / "pipe.npz")


def test_a_file_that_may_not_be_written_is_not_replaced(kept, monkeypatch):
    kept.chmod(0o444)
    access = os.access
    monkeypatch.setattr(  # as root one may write everything
        atomic.os, "access", lambda p, how: access(p, how) and bool(os.stat(p).st_mode & 0o200)
    )
    for refused in (check, lambda path: write(path)):
        with pytest.raises(ValueError, match="is there and may not be replaced"):
            refused(kept)
    assert there(kept.parent) == {"kept.bin": b"old"}
