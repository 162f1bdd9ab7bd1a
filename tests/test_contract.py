"""What the stand-in for CuPy was asked for, held against the real package, without a GPU.

CuPy imports where there is no driver, and even makes arrays over a pointer that points nowhere:
views, signatures and checks of arguments are then the real code, and what gets as far as the device
ends in CUDA's error, which is all that can be had here. Real numbers need a real device. Runs last
(conftest.py), on all that the tests before it asked for; alone, on a rehearsal of its own.
"""

import inspect
import operator
import re
from types import SimpleNamespace

import numpy as np
import pytest
import strict
from strategies import adapted, gpt2, ids, made, train
from strict import LOG, Like

import minilora as ml
from minilora import lora
from minilora.backend import gpu

cupy = pytest.importorskip("cupy")
special = pytest.importorskip("cupyx.scipy.special")
libs = pytest.importorskip("cupy_backends.cuda.libs")


def _devices() -> int:
    try:
        return cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError:
        return 0


pytestmark = pytest.mark.skipif(_devices() > 0, reason="never over a fake pointer on a real GPU")
NOT_FOUND = re.compile("Failure finding|CUDA|nvrtc|cannot open shared object", re.I)
START = 1 << 30  # address of the arrays without memory


@pytest.fixture(autouse=True)
def backend():
    """Not run on each array library: this file compares two of them."""


@pytest.fixture(scope="module", autouse=True)
def cublas():
    """Replace the library's constants, which products read first: the library is not installed
    here, and this way the arguments of products are checked, too."""
    names = ("CUBLAS_COMPUTE_32F", "CUBLAS_COMPUTE_32F_PEDANTIC", "CUBLAS_COMPUTE_32F_FAST_TF32",
             "CUBLAS_COMPUTE_64F", "CUBLAS_COMPUTE_64F_PEDANTIC", "CUBLAS_GEMM_DEFAULT",
             "CUBLAS_GEMM_DEFAULT_TENSOR_OP")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(vars(libs), "cublas", SimpleNamespace(**dict.fromkeys(names, 0)))
        yield


@pytest.fixture(scope="module", autouse=True)
def asked():
    """Return all calls so far, those of a rehearsal included."""
    before = ml.use(strict.StrictBackend())
    try:
        rehearse()
    finally:
        ml.use(before)
    return dict(LOG.asked)


def rehearse() -> None:
    """Train, adapt, merge and generate as a user does; plain and not, in single and half."""
    model, _ = adapted(0, "float32", dropout=0.1, targets=("q", "v", "tok"))
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.01)
    x = ids(0, tokens=8)
    ml.fit(model, [(x[:, :-1], x[:, 1:])], optimizer, steps=2, max_grad_norm=1.0, progress=False)
    with lora.merged(model):
        ml.generate(model, [1, 2], 3, rng=0)
    lora.merge(model)
    train(model.requires_grad_(), 1)
    train(gpt2(0, "float16", dropout=0.1), 2)
    for dtype in ("float32", "float16"):
        train(made("llama", 0, dtype), 2)
    for codes in ("nf4", "int8"):
        coded = gpt2(0, "float32")
        lora.attach(coded, ml.LoRAConfig(r=1), rng=0, base_dtype=codes)
        train(coded, 1)
        lora.merge(coded)
    with ml.plain():
        train(model, 1)
        ml.generate(model, [1, 2], 3, rng=0)
    block, mask = model.blocks[0], ids(1, tokens=8) > 0
    for plain in (True, False):
        with ml.plain(plain):
            block(ml.Tensor(np.ones((2, 8, 8), "float32")), mask=mask)
    ml.ops.gelu(
        ml.Tensor(np.ones(2, "float32"), requires_grad=True), approximate="none"
    ).sum().backward()


def near(text: str) -> inspect.Signature:
    """Return the signature in the first line of a Cython docstring."""
    inside = re.match(r"_ndarray_base\.\w+\(self(?:, )?(.*?)\)( -> .*)?$", text.strip())[1]
    plain = re.sub("_ndarray_base |Py_ssize_t |int ", "", inside)
    return inspect.signature(eval(f"lambda {plain}: 0"))


def bare(signature: inspect.Signature) -> list:
    return [(p.name, p.kind, p.default) for p in signature.parameters.values()]


def real_signature(name: str) -> inspect.Signature | None:
    method = getattr(cupy.ndarray, name)
    try:
        signature = inspect.signature(method)
    except ValueError:
        return near(method.__doc__.split("\n")[0])
    return signature.replace(parameters=list(signature.parameters.values())[1:])  # without self


@pytest.mark.parametrize("name", strict.SIGNATURES)
def test_the_stand_ins_functions_have_cupys_signatures(name):
    assert bare(strict.SIGNATURES[name]) == bare(inspect.signature(getattr(cupy, name)))


@pytest.mark.parametrize("name", strict.METHOD_SIGNATURES)
def test_the_stand_ins_methods_have_cupys_signatures(name):
    assert bare(strict.METHOD_SIGNATURES[name]) == bare(real_signature(name))


def test_the_stand_ins_ufuncs_are_cupys():
    for name in sorted(strict.UFUNCS):
        ufunc = getattr(cupy, name)
        signature = ufunc.__doc__.split("\n")[0]
        assert "out=None" in signature, name
        if name != "matmul":  # a generalized ufunc, of another type
            assert isinstance(ufunc, cupy.ufunc), name
            assert all(f"{keyword}=" in signature for keyword in strict.UFUNC_KEYWORDS), name


def test_the_stand_in_refuses_what_cupy_lacks_and_offers_what_it_has():
    assert [name for name in strict.LACKS if hasattr(cupy, name)] == []
    assert [name for name in strict.LACKS if not hasattr(np, name)] == []
    assert [name for name in strict.ATTRIBUTES | strict.TYPES - {"bool_"} if not (
        hasattr(cupy.ndarray, name) or hasattr(cupy, name))] == []
    ours = {name for name in vars(strict.StrictArray) if name.startswith("__")}
    theirs = {name for name in dir(cupy.ndarray) if name.startswith("__")}
    assert ours - theirs <= {"__contains__", "__del__", "__getattr__", "__weakref__"}
    drawn = {name for name in dir(cupy.random.Generator) if not name.startswith("_")}
    assert drawn == strict.GENERATOR


@pytest.mark.parametrize("dtype", ["float128", "complex256", "U3", "S3", "O", "M8[s]", ">f4"])
def test_dtypes_that_the_stand_in_refuses(dtype):
    with pytest.raises(strict.NotPortable):
        strict._allowed(np.dtype(dtype))
    if dtype != ">f4":  # CuPy can create it, but compute nothing with it
        with pytest.raises((ValueError, TypeError)):
            cupy.empty(2, np.dtype(dtype))


@pytest.mark.parametrize("char", strict.DTYPES)
def test_dtypes_that_the_stand_in_takes(char):
    assert over_nothing(Like(char, (2,), None)).dtype == np.dtype(char)


def over_nothing(like: Like):
    """Return a real CuPy array of this dtype, shape and strides, at an invalid address."""
    memory = cupy.cuda.UnownedMemory(START, START, None, 0)
    pointer = cupy.cuda.MemoryPointer(memory, START // 2)
    return cupy.ndarray(like.shape, np.dtype(like.dtype), pointer, strides=like.strides)


def real(x):
    """Return the argument with CuPy's arrays in place of the stand-in's."""
    if isinstance(x, Like):
        return np.zeros(x.shape, x.dtype) if x.strides is None else over_nothing(x)
    return type(x)(map(real, x)) if isinstance(x, (tuple, list)) else x


def replay(name: str, args: tuple, kwargs: dict) -> None:
    owner, _, method = name.rpartition(".")
    if owner == "ndarray" and method.startswith("__"):
        plain = method.strip("_")
        operation = getattr(operator, method, None) or getattr(operator, f"__{plain[1:]}__")
        operation(*args)
    elif owner == "ndarray":
        getattr(args[0], method)(*args[1:], **kwargs)
    elif owner == "cupyx.scipy.special":
        getattr(special, method)(*args, **kwargs)
    else:
        function = getattr(cupy, owner) if owner else cupy
        getattr(function, method)(*args, **kwargs)


def reaches_the_device(error: Exception) -> bool:
    """Is this the error of every correct call here: no driver, or one of its libraries missing?"""
    error = error.__cause__ or error  # the original error
    if isinstance(error, cupy.cuda.runtime.CUDARuntimeError):
        return True
    return isinstance(error, (ImportError, RuntimeError)) and bool(NOT_FOUND.search(str(error)))


def test_every_call_that_was_asked_for_gets_as_far_as_the_device(asked, request):
    failed, device = {}, 0
    for (name, kinds), (args, kwargs) in asked.items():
        try:
            replay(name, real(args), {k: real(v) for k, v in kwargs.items()})
        except Exception as error:
            device += reaches_the_device(error)
            if not reaches_the_device(error):
                failed[name, kinds] = f"{type(error).__name__}: {error}"
    names = {name for name, _ in asked}
    keywords = {(name, keyword) for name, (_, named) in asked for keyword, _ in named}
    request.config.stash[strict.TOLD] = (
        f"contract with cupy {cupy.__version__}, without a GPU: {len(names)} names, "
        f"{len(keywords)} keywords, {len(asked)} kinds of call, of which {device} end at the "
        f"missing device and {len(asked) - device} are done without one"
    )
    assert not failed, "\n".join(f"{key}: {message}" for key, message in failed.items())


def test_every_name_and_keyword_fits_its_signature(asked):
    for (name, _), (args, kwargs) in asked.items():
        owner, _, last = name.rpartition(".")
        if owner == "ndarray" and not last.startswith("__"):
            real_signature(last).bind(*args[1:], **kwargs)
        elif not owner and isinstance(getattr(cupy, last), cupy.ufunc):
            assert kwargs.keys() <= strict.UFUNC_KEYWORDS
            assert len(args) <= getattr(cupy, last).nargs
        elif not owner and not isinstance(getattr(cupy, last), type):
            inspect.signature(getattr(cupy, last)).bind(*args, **kwargs)


@pytest.mark.parametrize("mistake", [
    lambda x: x.sum(initial=0), lambda x: x.setflags(write=False), lambda x: cupy.vecdot(x, x),
    lambda x: np.asarray(x), lambda x: cupy.exp(x, nonsense=1), lambda x: x.reshape(7, 7),
    lambda x: [1, 2][x[0, 0]], lambda x: cupy.clip(x, min=0),
    lambda x: x @ x, lambda x: cupy.matmul(x.T, x, out=x), lambda x: x[None] @ x[None, :2],
])
def test_the_contract_sees_a_mistake(mistake):
    with pytest.raises((TypeError, AttributeError, ValueError)) as raised:
        mistake(over_nothing(Like("float32", (4, 3), (12, 4))))
    assert not reaches_the_device(raised.value)


def test_a_tensor_on_the_right_of_a_device_array_is_asked_first():
    x = over_nothing(Like("float32", (3,), (4,)))
    calls = []

    class Right:
        __array_ufunc__ = None

        def __radd__(self, other):
            calls.append(other)
            return self

    assert isinstance(x + Right(), Right) and calls[0] is x


def metered(backend, x):
    """A meter on the real memory hook, called as CuPy calls it."""
    meter_class = gpu._counting(cupy.cuda.MemoryHook)(0)
    others = {"device_id": 0, "mem_ptr": 0, "pmem_id": 0}
    with meter_class as meter:
        meter.malloc_postprocess(size=1, mem_size=512, **others)
        meter.malloc_postprocess(size=600, mem_size=1024, **others)
        meter.free_postprocess(mem_size=512, **others)
        assert meter.read() == (1024, 1536)
        meter.reset()
        assert meter.read() == (1024, 1024)
    backend.meter()


@pytest.mark.parametrize("hook", [
    lambda b, x: b.asnumpy(x), lambda b, x: b.module.asarray(np.ones(3)), lambda b, x: b.erf(x),
    lambda b, x: b.scatter_add(x, over_nothing(Like("int64", (4,), (8,))), x),
    lambda b, x: b.describe(), lambda b, x: b.synchronize(), lambda b, x: b.enter(), metered,
    lambda b, x: b.read(x.sum(), 0.0), lambda b, x: b.finite(x.sum(), [x]),
    lambda b, x: b.owner(x), lambda b, x: b.owns(x),
    lambda b, x: b.reserved(), lambda b, x: b.share(lambda at: x[at] + 1, 4, 12),
])
def test_each_hook_of_the_backend_gets_as_far_as_the_device(hook):
    backend = object.__new__(gpu.CupyBackend)
    backend.module, backend._special, backend._kernels = cupy, special, {}
    backend.device = cupy.cuda.Device(0)
    try:
        hook(backend, over_nothing(Like("float32", (4, 3), (12, 4))))
    except Exception as error:
        assert reaches_the_device(error), f"{type(error).__name__}: {error}"


def test_without_a_device_the_backend_says_so():
    with pytest.raises(RuntimeError, match="CuPy is installed, but no CUDA device answers"):
        ml.use("cupy")
