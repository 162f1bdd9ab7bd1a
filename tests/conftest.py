"""One fixture runs every test on each array library that is there; Hypothesis is deterministic."""

import importlib.util

import numpy as np
import pytest
from hypothesis import HealthCheck, settings

import minilora as ml

settings.register_profile(
    "minilora",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=30,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("minilora")


def _backends() -> list[str]:
    names = ["numpy"]
    if importlib.util.find_spec("cupy"):
        try:
            ml.use(ml.use("cupy"))
        except (ImportError, RuntimeError):
            return names
        names.append("cupy")
    return names


@pytest.fixture(params=_backends(), autouse=True)
def backend(request):
    """The array library that the test runs on: add a name to `_backends` and all run there."""
    before = ml.use(request.param)
    yield ml.current()
    ml.use(before)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
