"""files/folders.py: a folder is there with all its files, or not at all."""

import os

import pytest

from minilora.files import folders

pytestmark = pytest.mark.usefixtures("numpy_only")


def test_a_folder_has_its_name_when_all_files_are_in_it(tmp_path):
    place = tmp_path / "model"
    for expected in ("a", "b"):
        with folders.writing(place) as temporary:
            assert temporary.parent == tmp_path and not [*place.glob("*")]
            (temporary / "file").write_text(expected, "utf-8")
        assert (place / "file").read_text("utf-8") == expected
        assert [*tmp_path.iterdir()] == [place]
        (place / "file").unlink()  # an empty folder may be there


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
@pytest.mark.parametrize("exists", [False, True])
def test_after_an_error_nothing_is_there_that_was_not_before(tmp_path, error, exists):
    place = tmp_path / "model"
    if exists:
        place.mkdir()
    before = [*tmp_path.iterdir()]
    try:
        raise LookupError  # a handler around the block hides nothing
    except LookupError:
        with pytest.raises(error), folders.writing(place) as temporary:
            (temporary / "file").write_text("half", "utf-8")
            raise error from None
    assert [*tmp_path.iterdir()] == before


def test_nothing_is_replaced(tmp_path, monkeypatch):
    (tmp_path / "full").mkdir()
    for name in "dacb":
        (tmp_path / "full" / name).touch()
    (tmp_path / "file").touch()
    monkeypatch.chdir(tmp_path)
    for name, reason in {
        "full": r"full is not empty \(it has a, b, c, \.\.\.\), and nothing is replaced",
        "file": "'file' is not a folder", "": "'' is not a folder",
        "none/model": "none is not a folder: create it first",
    }.items():
        for _ in range(2):
            with pytest.raises(ValueError, match=reason):
                folders.check(name)
            with pytest.raises(ValueError, match=reason), folders.writing(name):
                raise AssertionError
    with folders.writing("model") as temporary:
        (temporary / "file").touch()
    assert sorted(os.listdir()) == ["file", "full", "model"]


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="anyone may write there")
def test_where_nobody_may_write_the_error_says_so(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(ValueError, match="cannot be written"), folders.writing(tmp_path / "model"):
        raise AssertionError
