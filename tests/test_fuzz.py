"""A damaged file is read correctly, or refused without any change (tests/fuzz.py)."""

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
def test_a_damaged_file_is_read_correctly_or_refused_without_any_change(readers, kind, seed):
    verdict, why = fuzz.judge(readers[kind], seed)
    assert verdict != "FAULT", why


@pytest.mark.parametrize("kind", fuzz.READERS, ids=lambda kind: kind.__name__)
def test_the_undamaged_file_is_read_correctly(readers, kind, monkeypatch):
    monkeypatch.setattr(kind, "damages", [lambda valid, rng: valid])
    assert fuzz.judge(readers[kind], 0)[0] == "right"
