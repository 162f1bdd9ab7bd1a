"""The journal of finished work: keys, torn and damaged lines, two processes."""

import copy
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from minilora.files.journal import Journal, key_of

pytestmark = pytest.mark.usefixtures("numpy_only")

leaves = st.none() | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1) | st.text(max_size=3)
trees = st.recursive(
    leaves, lambda inside: st.lists(inside, max_size=3)
    | st.dictionaries(st.text(max_size=3), inside, max_size=3), max_leaves=8,
)
configs = st.dictionaries(st.text(max_size=3), trees, max_size=4)
facts = st.dictionaries(st.text(max_size=3).filter(lambda name: name != "key"), trees, max_size=3)


def places(tree, path=()):
    """Every leaf of a tree, as a path."""
    items = tree.items() if isinstance(tree, dict) else (
        enumerate(tree) if isinstance(tree, list) else ())
    found = [place for at, inside in items for place in places(inside, (*path, at))]
    return found or [path]


@given(config=configs, data=st.data())
def test_a_key_depends_on_every_setting_and_not_on_their_order(config, data):
    shuffled = dict(data.draw(st.permutations([*config.items()])))
    assert key_of(shuffled) == key_of(config) and len(key_of(config)) == 16
    path = data.draw(st.sampled_from(places(config)))
    other = {"": copy.deepcopy(config)}
    spot = other
    for at in (inside := ("", *path))[:-1]:
        spot = spot[at]
    spot[inside[-1]] = data.draw(leaves.filter(lambda x: json.dumps(x) != json.dumps(
        spot[inside[-1]])))
    assert key_of(other[""]) != key_of(config)
    assert key_of(config | {"more": 1}) != key_of(config) or config.get("more") == 1


def test_a_key_is_of_what_json_holds():
    with pytest.raises(ValueError):
        key_of({"rate": float("nan")})
    with pytest.raises(TypeError):
        key_of({"rate": {1, 2}})


@given(lines=st.dictionaries(st.text(max_size=4), facts, max_size=4))
def test_what_is_added_is_read_again(lines):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "runs.jsonl")
        with Journal(path) as journal:
            for key, line in lines.items():
                journal.add(key, line)
                journal.add(key, {"another": 1})  # it is done already
        again = Journal(path)
        assert again.lines == journal.lines == {k: {"key": k, **v} for k, v in lines.items()}
        assert len(again) == len(lines) and all(key in again for key in lines)
        assert path.exists() == bool(lines)


def test_a_result_reads_the_same_before_and_after_it_was_written(tmp_path):
    with Journal(tmp_path / "a") as journal:
        journal.add("a", {"result": {1: (1.5, 2)}})
    assert journal["a"] == Journal(tmp_path / "a")["a"] == {"key": "a", "result": {"1": [1.5, 2]}}


def test_a_last_line_that_is_torn_anywhere_is_dropped_and_written_again(tmp_path):
    path = tmp_path / "runs.jsonl"
    with Journal(path) as journal:
        journal.add("first", {"result": 1.5})
        whole = path.stat().st_size
        journal.add("last", {"result": [1, "é"]})
    data = path.read_bytes()
    for cut in range(whole, len(data)):
        path.write_bytes(data[:cut])
        with Journal(path) as journal:
            assert [*journal.lines] == ["first"], cut
            assert path.read_bytes() == data[:cut]  # reading changes nothing
            journal.add("last", {"result": [1, "é"]})
        assert path.read_bytes() == data, cut
    for cut in range(whole, len(data) - 1):  # the disk lost a part of it, and kept its end
        path.write_bytes(data[:cut] + b"\0" * (len(data) - 1 - cut) + b"\n")
        assert [*Journal(path).lines] == ["first"], cut


@pytest.mark.parametrize("damage", [b"", b"{}", b"[1]", b'{"key": 1}', b"\xff\xfe", b"[" * 2000])
def test_a_damaged_line_in_the_middle_is_named(damage, tmp_path):
    path = tmp_path / "runs.jsonl"
    with Journal(path) as journal:
        for key in "abc":
            journal.add(key, {})
    lines = path.read_bytes().split(b"\n")
    path.write_bytes(b"\n".join([lines[0], damage, *lines[2:]]))
    with pytest.raises(ValueError, match=r"runs.jsonl: line 2 is not one of a journal.*: remove"):
        Journal(path)


@pytest.mark.skipif(os.name != "posix", reason="there are no such locks")
def test_one_at_a_time_adds_and_the_next_sees_what_was_added(tmp_path):
    path = tmp_path / "runs.jsonl"
    one, other = Journal(path), Journal(path)
    one.add("a", {"n": 1})
    with pytest.raises(ValueError, match="in use by another process: wait for it, or write"):
        other.add("b", {"n": 2})
    code = (
        "import sys; from minilora.files.journal import Journal\n"
        "try: Journal(sys.argv[1]).add('c', {})\n"
        "except ValueError as error: print(error)"
    )
    root = Path(__file__).parent.parent
    said = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True,
                          check=True, env=os.environ | {"PYTHONPATH": str(root)})
    assert "in use by another process" in said.stdout
    one.close()
    other.add("b", {"n": 2})
    assert [*other.lines] == ["a", "b"] == [*Journal(path).lines]
    other.add("a", {"n": 3})
    assert other["a"]["n"] == 1
    other.close()


def test_a_journal_without_a_file_stays_in_memory():
    with Journal(None) as journal:
        journal.add("a", {"x": 1})
    assert journal["a"] == {"key": "a", "x": 1} and "b" not in journal
