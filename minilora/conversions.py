"""Where a Tensor meets Python and NumPy: it becomes a number or an array, or says what to do."""
from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from numbers import Number
from typing import Any

import numpy as np

from .backend import Array, asnumpy, xp

ops_by_name: dict[str, Any] = {}  # the ops of minilora.ops
NUMPY = {  # functions of NumPy -> the ops that compute the same, with a gradient
    "add": "add", "subtract": "sub", "multiply": "mul", "divide": "div", "negative": "neg",
    "matmul": "matmul", "exp": "exp", "log": "log", "sqrt": "sqrt", "tanh": "tanh",
    "sum": "sum", "mean": "mean", "max": "max",
}

class _ForNumPy:
    """`__array_ufunc__`: a function for NumPy, which asks the class; None for CuPy, which asks the
    object, and then calls `Tensor.__radd__`."""
    def __get__(self, tensor: Any, owner: Any) -> Any:
        return _ufunc if tensor is None else None

def _ufunc(self: Any, ufunc: Any, method: str, *inputs: Any, **settings: Any) -> Any:
    return _computed(ufunc if method == "__call__" else getattr(ufunc, method), inputs, settings)

class Converts:
    """What Python and NumPy ask of a number or of an array."""
    __slots__ = ()
    _data: Array
    __mul__: Callable[[Any, Any], Any]

    def item(self) -> Any:
        """Return the only number of this tensor, on the host; ValueError if there are more."""
        if self._data.size != 1:
            raise ValueError(f"a Tensor {tuple(self._data.shape)} is not one number: use .sum(), "
                             ".mean(), an index, or .numpy() for its array")
        return asnumpy(self._data).item()
    def numpy(self) -> np.ndarray:
        """Return a copy of the numbers, on the host, without a gradient."""
        return np.array(asnumpy(self._data))

    __array_ufunc__ = _ForNumPy()
    def __array_function__(self, function: Any, types: Any, inputs: Any, settings: Any) -> Any:
        return _computed(function, inputs, settings)
    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return np.array(asnumpy(self._data), dtype=dtype, copy=copy is not False)
    def __bool__(self) -> bool: return bool(self.item())
    def __int__(self) -> int: return int(self.item())
    def __float__(self) -> float: return float(self.item())
    def __len__(self) -> int: return len(self._data)
    def __iter__(self) -> Iterator[Any]:
        return (ops_by_name["getitem"](self, index=i) for i in range(len(self)))
    def __rpow__(self, base: float) -> Any: return ops_by_name["exp"](self * math.log(base))
    def __format__(self, form: str) -> str: return format(self.item(), form) if form else str(self)

    # Comparisons give an array of bools. Sets and dicts know a Tensor by its identity.
    def __eq__(self, other: Any) -> Any: return self._compared(xp.equal, other)
    def __ne__(self, other: Any) -> Any: return self._compared(xp.not_equal, other)
    def __lt__(self, other: Any) -> Any: return self._compared(xp.less, other)
    def __le__(self, other: Any) -> Any: return self._compared(xp.less_equal, other)
    def __gt__(self, other: Any) -> Any: return self._compared(xp.greater, other)
    def __ge__(self, other: Any) -> Any: return self._compared(xp.greater_equal, other)
    __hash__ = object.__hash__
    def _compared(self, relation: Callable[..., Any], other: Any) -> Any:
        if isinstance(other, Converts | Number | list) or hasattr(other, "dtype"):
            other = number(other) if isinstance(other, np.generic) else other
            return relation(self._data, getattr(other, "_data", other))
        return NotImplemented

def number(x: Any) -> Any:
    """Return a scalar of NumPy as a number of Python."""
    return float(x) if x.dtype.kind == "f" else x.item()

def _computed(function: Callable[..., Any], inputs: Any, settings: dict[str, Any]) -> Any:
    """Return function(*inputs, **settings), a call of NumPy's with Tensors: by an op if there is
    one, else of arrays. Raises TypeError if a gradient would be lost."""
    name = function.__name__
    if NUMPY.get(name) in ops_by_name and "out" not in settings:
        return ops_by_name[NUMPY[name]](*inputs, **settings)
    lost = any(t.requires_grad for t in _tensors([inputs, settings]))
    result = 0.0 if lost and "out" in settings else function(*_arrays(inputs), **_arrays(settings))
    if lost and np.asarray(result).dtype.kind in "fc":
        raise TypeError(
            f"np.{name} knows no gradients, and a Tensor here requires one: use minilora.ops, or "
            "t.numpy() for the numbers alone")
    return result

def _tensors(thing: Any) -> Iterator[Any]:
    """Yield the Tensors among the arguments of a function."""
    if isinstance(thing, Converts):
        yield thing
    elif isinstance(thing, list | tuple | dict):
        for item in thing.values() if isinstance(thing, dict) else thing:
            yield from _tensors(item)

def _arrays(thing: Any) -> Any:
    """Return the arguments with an array for each Tensor."""
    if isinstance(thing, list | tuple):
        return (list if isinstance(thing, list) else tuple)(map(_arrays, thing))
    if isinstance(thing, dict):
        return {name: _arrays(value) for name, value in thing.items()}
    return asnumpy(thing._data) if isinstance(thing, Converts) else thing
