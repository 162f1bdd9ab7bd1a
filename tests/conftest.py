"""One fixture runs every test on each array library that is there; Hypothesis is deterministic."""

import collections
import gc
import importlib.util
import math
import os
import signal
import zlib

# One thread in each process of the tests and in their children; read when NumPy is imported.
os.environ["OPENBLAS_NUM_THREADS"] = os.environ.get("OPENBLAS_NUM_THREADS", "1")
os.environ["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS", "1")

import dpnp_library
import numpy as np
import pytest
import strict
from hypothesis import HealthCheck, Phase, settings

import minilora as ml
from minilora import cli
from minilora.site import publish

THOROUGH = "thorough" in os.environ.get("MINILORA_TESTS", "")  # all examples, and all cases
SHARE = 1 if THOROUGH else 0.3  # of the examples
DEVICES = ("strict", "dpnp")  # the stand-in for CuPy; dpnp where `-m dpnp` asks for it
FEW = 3 if THOROUGH else 1  # examples on these
EVERY = 1 if THOROUGH else 4  # of the cases of a test, one in four is for these

settings.register_profile(
    "minilora",
    deadline=None,
    derandomize=True,
    database=None,
    max_examples=60 if THOROUGH else 20,  # of these, the share above
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("minilora")


def kept(cases, *some):
    """These cases; those that are not among the others named are for the thorough run."""
    return [case if case in some else pytest.param(
        *(case if isinstance(case, tuple) else [case]), marks=pytest.mark.thorough)
        for case in cases]


BUILDS = all(importlib.util.find_spec(name) for name in publish.NEEDS)
builds = pytest.mark.skipif(not BUILDS, reason="needs pip install '.[tutorials]'")


def _backends() -> list[str]:
    names = ["numpy", "strict"]
    if importlib.util.find_spec("cupy"):
        try:
            ml.use(ml.use("cupy"))
        except (ImportError, RuntimeError):
            return names
        names.append("cupy")
    return names


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # begun in a shell's background, or by nohup
    signal.signal(signal.SIGINT, signal.default_int_handler)

BACKENDS = _backends()
TOGETHER = {f"tests/test_{name}.py" for name in ("tutorials", "grading", "site")}


def pytest_generate_tests(metafunc):
    """Each test on each library; what asks for NumPy only, on NumPy."""
    if not hasattr(metafunc.module, "backend"):  # a fixture of its own
        asked = "dpnp" in metafunc.config.option.markexpr and not dpnp_library.MISSING
        names = [*BACKENDS, "dpnp"] if asked else BACKENDS
        names = names[: 1 if "numpy_only" in metafunc.fixturenames else None]
        if "numpy_first" in metafunc.fixturenames:
            names = [pytest.param(name, marks=[pytest.mark.thorough] * (name in DEVICES))
                     for name in names]
        metafunc.parametrize("backend", names, indirect=True)


@pytest.fixture(autouse=True)
def backend(request):
    """The array library that the test runs on: add a name to `_backends` and all run there."""
    imitated, test = request.param in DEVICES, request.function
    if hasattr(test, "hypothesis"):  # there it is the same code: fewer examples will do
        whole = vars(test).setdefault("all_examples", test._hypothesis_internal_use_settings)
        few = FEW if imitated else math.ceil(SHARE * whole.max_examples)
        phases = whole.phases
        if request.param == "dpnp":  # it has faults of its own, which nobody needs to see smaller
            phases = [phase for phase in phases if phase is not Phase.shrink]
        test._hypothesis_internal_use_settings = settings(
            whole, max_examples=min(few, whole.max_examples), phases=phases)
    library = dpnp_library.DpnpBackend() if request.param == "dpnp" else strict.named(request.param)
    before = ml.use(library)
    with np.errstate(**{"all": "ignore"} if imitated else {}):  # a device never warns
        yield ml.current()
    ml.use(before)
    strict.LOG.no_wrapping()


@pytest.fixture
def numpy_only(backend):
    """For what no other array library would do otherwise: files, words, the source."""


@pytest.fixture
def numpy_first(backend):
    """For what is dear: on the stand-in for CuPy in the thorough run only, as others test that."""


@pytest.fixture
def one_thread_each(numpy_only):
    """For a comparison with PyTorch: no library but NumPy on our side, and one thread on theirs."""
    torch = pytest.importorskip("torch")
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def ex(tmp_path, monkeypatch, capsys):
    """ex(word, ..., code=0): run `minilora ex` in an empty folder; return what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*words, code=0):
        assert cli.main(["ex", *words]) == code
        return "".join(capsys.readouterr())

    return run


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several processes, all cases of a test go to one, and so do files with slow fixtures;
    the largest first."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            file = nodeid.partition("::")[0]
            return file if file in TOGETHER else nodeid.partition("[")[0]

    return Scheduling(config, log)


def pytest_collection_modifyitems(config, items):
    """What is about the real CuPy comes last: it is about what the tests before asked for."""
    items[:], rest = spread(items)
    config.hook.pytest_deselected(items=rest)
    for item in items:
        if item.get_closest_marker("thorough") and not THOROUGH:
            item.add_marker(pytest.mark.skip(reason="MINILORA_TESTS=thorough runs it"))
        callspec = getattr(item, "callspec", None)
        name = {"cupy": "gpu", "dpnp": "dpnp"}.get(callspec and callspec.params.get("backend"))
        if name:
            item.add_marker(name)
    items.sort(key=lambda item: item.path.name in ("test_contract.py", "test_fuse.py"))


def spread(items):
    """(items, others): of the cases of a test, one in four is for a device, others in each."""
    cases = collections.defaultdict(list)
    for item in items:
        device = getattr(item, "callspec", None) and item.callspec.params.get("backend")
        if device in DEVICES:
            cases[device, item.nodeid.partition("[")[0]].append(item)
    others = {item for (_, name), case in cases.items() for i, item in enumerate(case)
              if (i + zlib.crc32(name.encode())) % min(EVERY, len(case))}
    return [item for item in items if item not in others], list(others)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """A test that fails on dpnp by a fault of dpnp's own is expected to."""
    report = yield
    if call.excinfo and item.get_closest_marker("dpnp"):
        reason = dpnp_library.fault(call.excinfo.value)
        if reason:
            report.outcome, report.wasxfail = "skipped", reason
    return report


def pytest_collection_finish():
    """What is collected stays: from here on, the collector of garbage need not look at it."""
    gc.collect()
    gc.freeze()


def pytest_terminal_summary(terminalreporter, config):
    if strict.TOLD in config.stash:
        terminalreporter.write_line(config.stash[strict.TOLD])
