"""A damaged file is read right or refused, and then nothing has changed (tests/fuzz.py)."""

import fuzz
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture(scope="module")
def readers(tmp_path_factory):
    return {kind: kind(tmp_path_factory.mktemp("files")) for kind in fuzz.READERS}


@pytest.mark.parametrize("kind", fuzz.READERS, ids=lambda kind: kind.__name__)
@settings(max_examples=60)
@given(seed=st.integers(0, 2**32))
def test_a_damaged_file_is_read_right_or_refused_and_nothing_has_changed(readers, kind, seed):
    verdict, why = fuzz.judged(readers[kind], seed)
    assert verdict != "FAULT", why


@pytest.mark.parametrize("kind", fuzz.READERS, ids=lambda kind: kind.__name__)
def test_the_file_itself_is_read_right(readers, kind, monkeypatch):
    monkeypatch.setattr(fuzz, "DAMAGES", [lambda whole, rng: whole])
    assert fuzz.judged(readers[kind], 0)[0] == "right"
