"""Text for a tensor and a module: one line, the tree of parameters, the cost of training."""

from __future__ import annotations

from itertools import groupby
from typing import Any

import numpy as np


def line(tensor: Any, x: np.ndarray) -> str:
    """Return one line for a tensor with numbers x: dtype, shape, statistics or values, origin."""
    parts = [f"{x.dtype.kind}{8 * x.itemsize} {x.shape}"]
    if x.size <= 8:
        parts.append(str(x.tolist()))
    elif x.dtype.kind == "f":
        parts.append(f"mean {x.mean():.3g} sd {x.std():.3g}")
        parts.append(f"min {x.min():.3g} max {x.max():.3g}")
    if tensor._node is not None:
        parts.append(f"from {tensor._node.name}")
    if tensor.requires_grad:
        parts.append("grad")
    return f"Tensor({', '.join(parts)})"


def tree(module: Any) -> str:
    """Return the tree: `*` trained, `.` frozen, shapes, counts; equal neighbours share a line."""
    return "\n".join([type(module).__name__ + module.extra_repr(), *_below(module, "  ")])


def summary(module: Any) -> str:
    """Return the tree, the number of trained parameters, and the bytes that training needs."""
    sizes = [(p.data.size, p.data.nbytes, p.requires_grad) for p in module.parameters()]
    total, weights = sum(n for n, _, _ in sizes), sum(nbytes for _, nbytes, _ in sizes)
    trained = sum(n for n, _, is_trained in sizes if is_trained)
    grads = sum(nbytes for _, nbytes, is_trained in sizes if is_trained)
    return (
        f"{module!r}\n"
        f"trainable params: {trained:,} || all params: {total:,} || "
        f"trainable%: {100 * trained / max(total, 1):.4f}\n"
        f"bytes: weights {weights:,} | gradients {grads:,} | Adam state {2 * grads:,}"
    )


def _below(module: Any, indent: str) -> list[str]:
    """Return the lines of the tree below a module."""
    rows = [(name, _row(child, indent)) for name, child in module.children() if _speaks(child)]
    lines = []
    for (_, row), same in groupby(rows, lambda r: (r[0].rstrip("0123456789"), r[1])):
        names = [name for name, _ in same]
        label = names[0] + (f"-{names[-1].split('.')[-1]}" if len(names) > 1 else "")
        lines += [f"{indent}{label:<9} {row[0]}", *row[1:]]
    return lines


def _row(child: Any, indent: str) -> list[str]:
    """Return the text after the name of a parameter (*768x768) or module, and the lines below."""
    if _is_parameter(child):
        return [f"{'*' if child.requires_grad else '.'}{'x'.join(map(str, child.shape))}"]
    below = list(child.children())
    if all(_is_parameter(grandchild) for _, grandchild in below):
        marks = (f"{name} {_row(grandchild, indent)[0]}" for name, grandchild in below)
        return [" ".join(marks) + child.extra_repr()]
    size = sum(p.data.size for p in child.parameters())
    return [f"{size:,} parameters{child.extra_repr()}", *_below(child, indent + "  ")]


def _speaks(child: Any) -> bool:
    """Return whether there is anything to show: a parameter, or text of the module's own."""
    return _is_parameter(child) or any(
        m.extra_repr() or any(_is_parameter(c) for _, c in m.children())
        for _, m in child.named_modules())


def _is_parameter(child: Any) -> bool:
    return not hasattr(child, "children")
