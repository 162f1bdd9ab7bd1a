"""What CuPy makes of the fused formulas, as far as that can be seen without a GPU.

The real `cupy.fuse` writes the kernel of each formula, and its text is all here: it is searched for
arithmetic in another precision, given to NVIDIA's compiler where that is installed (it needs no
GPU), and compiled for the host and run beside NumPy where there is a C++ compiler. None of this is
a run on a GPU. Like the contract, it is about what the tests before it asked for.
"""

import ctypes
import glob
import os
import re
import shutil
import subprocess
from typing import NamedTuple

import numpy as np
import pytest
from strict import LOG, Like, StrictBackend
from test_contract import cupy, pytestmark, reaches_the_device, real, rehearse, special

import minilora as ml
from minilora.backend import gpu
from minilora.kernels import rowwise

__all__ = ["pytestmark"]  # skipped on a GPU
LETTERS = {"f": "float", "d": "double", "e": "float16", "I": "unsigned int"}
LIKE = Like("float32", (4,), (4,))
POSITIVE = {"variance", "v"}  # arguments of a square root


class Kernel(NamedTuple):
    """A formula, arguments of one kind that it was called with, and CuPy's kernel for them."""

    formula: object
    args: tuple
    compiled: object  # cupy's ElementwiseKernel: its parameters, its preamble, its text

    @property
    def name(self):
        return (
            f"{self.formula.__name__}({', '.join(str(getattr(a, 'dtype', a)) for a in self.args)})"
        )

    @property
    def letters(self):
        return {np.dtype(a.dtype).char for a in self.args if hasattr(a, "dtype")}


@pytest.fixture(autouse=True)
def backend():
    """Not run on each array library: this compares two of them."""


@pytest.fixture(scope="module")
def kernels():
    """Return one kernel per formula and kind of arguments that was called so far."""
    before = ml.use(StrictBackend())
    rehearse()
    cuda = object.__new__(gpu.CupyBackend)
    cuda.module, cuda._special, cuda._kernels = cupy, special, {}
    cuda.enter = lambda: None
    ml.use(cuda)
    latest = {}
    try:
        for (formula, _), args in LOG.fused.items():
            kernel = cuda.fuse(formula)
            try:
                kernel(*map(real, args))
            except Exception as error:
                assert reaches_the_device(error), f"{formula.__name__}: {error}"
            key, (last, _) = next(reversed(kernel._memo.items()))
            latest.setdefault((formula, key), Kernel(formula, args, last))
    finally:
        ml.use(before)
    return list(latest.values())


def test_every_formula_was_asked_for(kernels):
    """All formulas of the package with the decorator, and no others."""
    marked = set()
    for path in glob.glob(os.path.join(os.path.dirname(ml.__file__), "**", "*.py"), recursive=True):
        with open(path, encoding="utf-8") as file:
            marked |= set(re.findall(r"^@fused\ndef (\w+)", file.read(), re.M))
    assert {kernel.formula.__name__ for kernel in kernels} == marked and len(marked) > 9


def test_each_computes_in_the_precision_of_its_arrays(kernels):
    for kernel in kernels:
        text = kernel.compiled.operation
        own = re.findall(r"^(?!const)(double|float16|float) v", text, re.M)
        assert set(own) <= {LETTERS[letter] for letter in kernel.letters}, kernel.name


def test_that_would_be_seen():
    """Two numbers become a half when they meet: the reason for a rule of `fused`."""

    def mistake(x, y, number):
        x += y * (1 - number)

    kernel_of = cupy.fuse(mistake)
    one = real((LIKE, LIKE))
    with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
        kernel_of(*one, 0.1)
    ((kernel, _),) = kernel_of._memo.values()
    assert "float16 v" in kernel.operation


def pointers(kernel) -> str:
    """Return the kernel's parameters: a pointer per array, a value per number."""
    return ", ".join(
        f"{p.ctype} *_{p.name}" if hasattr(given, "dtype") else f"{p.ctype} {p.name}"
        for p, given in zip(kernel.compiled.in_params, kernel.args)
    )


def body(kernel) -> str:
    """Return one iteration of its loop: definitions of the names in its text, and the text."""
    names = [
        f"{p.ctype} &{p.name} = _{p.name}[i];"
        for p, given in zip(kernel.compiled.in_params, kernel.args)
        if hasattr(given, "dtype")
    ]
    return "\n".join([*names, kernel.compiled.operation])


def test_nvidias_compiler_takes_each_of_them(kernels):
    nvrtc = cupy.cuda.nvrtc
    nvidia = pytest.importorskip("nvidia", reason="NVIDIA's compiler is not installed")
    headers = [f for root in nvidia.__path__ for f in glob.glob(os.path.join(root, "*", "include"))]
    if not any(os.path.exists(os.path.join(folder, "cuda_fp16.h")) for folder in headers):
        pytest.skip("CUDA's headers are not installed")
    ours = os.path.join(os.path.dirname(cupy.__file__), "_core", "include")
    options = [f"-I{folder}" for folder in (ours, f"{ours}/cupy/_cccl/libcudacxx", *headers)]
    for kernel in kernels:
        source = (
            f"#include <cupy/float16.cuh>\n{kernel.compiled.preamble}\n"
            f'extern "C" __global__ void run({pointers(kernel)}) {{\n'
            f"long long i = blockIdx.x * blockDim.x + threadIdx.x;\n{body(kernel)}\n}}"
        )
        try:
            program = nvrtc.createProgram(source, "kernel.cu", (), ())
        except Exception as error:
            assert reaches_the_device(error)
            pytest.skip(f"NVIDIA's compiler is not installed: {error}")
        try:
            nvrtc.compileProgram(program, ["--gpu-architecture=compute_80", "-std=c++17", *options])
        except nvrtc.NVRTCError:
            pytest.fail(f"{kernel.name}: {nvrtc.getProgramLog(program)}")
        text = nvrtc.getPTX(program)
        if "d" not in kernel.letters:
            assert not re.search(r"(add|sub|mul|div|fma)\S*\.f64", str(text)), kernel.name


@pytest.fixture(scope="module")
def compiled(kernels, tmp_path_factory):
    """Compile the kernels' text for the host: those in single and in double precision."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None:
        pytest.skip("there is no C++ compiler")
    chosen = [kernel for kernel in kernels if "e" not in kernel.letters]
    parts = ["#include <algorithm>\n#include <cmath>\nusing namespace std;\n#define __device__\n"]
    for at, kernel in enumerate(chosen):
        preamble = re.sub(r'#include "cupy/float16.cuh"', "", kernel.compiled.preamble)
        parts.append(
            f"namespace kernel{at} {{\n{preamble}\n"
            f'extern "C" void run{at}(long long n, {pointers(kernel)}) {{\n'
            f"for (long long i = 0; i < n; i++) {{\n{body(kernel)}\n}} }} }}\n"
        )
    folder = tmp_path_factory.mktemp("kernels")
    source, library = folder / "kernels.cpp", folder / "kernels.so"
    source.write_text("\n".join(parts))
    flags = ["-O1", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run([compiler, *flags, str(source), "-o", str(library)], check=True)
    loaded = ctypes.CDLL(str(library))
    return [(kernel, getattr(loaded, f"run{at}")) for at, kernel in enumerate(chosen)]


def given_to(kernel, seed=0):
    """Return arguments of the kernel's kind, with numbers in the domain of its formula."""
    rng = np.random.default_rng(seed)
    names = kernel.formula.__code__.co_varnames
    for name, example in zip(names, kernel.args):
        if not hasattr(example, "dtype"):
            yield example
        elif np.dtype(example.dtype).kind == "u":
            yield rng.integers(0, 1 << 32, example.shape).astype(example.dtype)
        else:
            x = rng.standard_normal(example.shape).astype(example.dtype)
            yield np.abs(x) + x.dtype.type(0.1) if name in POSITIVE else x


def call(run, kernel, args):
    """Run it on full arrays, as CuPy's loop would; return the arrays after it."""
    full = np.broadcast_shapes(*(a.shape for a in args if isinstance(a, np.ndarray)))
    passed = [
        np.broadcast_to(a, full).copy(order="C") if isinstance(a, np.ndarray) else a for a in args
    ]
    kinds = {"double": ctypes.c_double, "long long": ctypes.c_longlong}
    run(ctypes.c_longlong(int(np.prod(full))), *(
        a.ctypes.data_as(ctypes.c_void_p) if isinstance(a, np.ndarray) else kinds[p.ctype](a)
        for p, a in zip(kernel.compiled.in_params, passed)
    ))
    return passed


def test_their_text_run_on_the_host_is_what_numpy_makes_of_the_formula(compiled):
    before = ml.use("numpy")
    try:
        for kernel, run in compiled:
            args = list(given_to(kernel))
            theirs = call(run, kernel, [np.array(a) if hasattr(a, "dtype") else a for a in args])
            kernel.formula(*args)
            for ours, other in zip(args, theirs):
                if isinstance(ours, np.ndarray):
                    eps = np.finfo(ours.dtype).eps if ours.dtype.kind == "f" else 0
                    wanted = np.broadcast_to(ours, other.shape)
                    apart = np.abs(wanted.astype("float64") - other)
                    assert (apart <= 64 * eps * (1 + np.abs(wanted))).all(), kernel.name
    finally:
        ml.use(before)


def test_a_kernel_may_write_where_it_reads(compiled):
    """Attention shifts its scores in place: input and output are one array."""
    wanted = rowwise.exp_shifted  # the decorated formula
    ran = 0
    for kernel, run in compiled:
        if kernel.formula.__name__ != "exp_shifted":
            continue
        x, top, _ = given_to(kernel)
        full = np.broadcast_to(top, x.shape).copy(order="C")
        expected, own = np.empty_like(x), x.copy()
        wanted(x, top, expected)
        data = own.ctypes.data_as(ctypes.c_void_p)
        run(ctypes.c_longlong(x.size), data, full.ctypes.data_as(ctypes.c_void_p), data)
        np.testing.assert_allclose(own, expected, rtol=64 * np.finfo(x.dtype).eps)
        ran += 1
    assert ran
