"""A different adapter for each batch row, in one forward pass.

§4.2 says that this is not straightforward after merging B A into W. Here nothing is merged.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from .. import ops
from ..backend.blocks import block
from ..nn import Module
from ..tensor import Tensor
from ..words import our_words
from .context import within
from .places import adapted
from .protocol import Adapted
from .registry import state_of


@our_words
@block
def per_row(model: Module, names: Sequence[str]) -> Iterator[None]:
    """Run each batch row with its own adapter in the block; "base": without an adapter.

    with lora.per_row(model, ["poet", "base", "clerk"]): model(ids)      ids: (3, tokens)

    Each row gets the result that it would get alone, in training and in generation, in this thread
    only. Raises ValueError for adapters that are not updates of a layer's weight, and for adapters
    with trained copies, because all rows share a copy.
    """
    names = (names,) if isinstance(names, str) else tuple(names)
    mine = [name for name in dict.fromkeys(names) if name != "base"]
    state = state_of(model, *mine)
    for name in dict.fromkeys([*mine, *state.active]):
        for at in state.copies[name]:
            raise ValueError(
                f"per_row: {name!r} trains a copy of {at}, which all rows would share: name and "
                "activate only adapters without copies"
            )
    modules = adapted(model)
    for path, module in modules.items():
        for name in mine:
            if name in module.adapters and module.adapters[name].factors() is None:
                raise ValueError(
                    f"per_row: {name!r} ({state.configs[name].called}) at {path} is not an update "
                    "of a layer's weight: name adapters that are, such as LoRA"
                )
    with within(rows=Rows(names, frozenset(map(id, modules.values())))):
        yield


class Rows:
    """The adapter of each batch row, and the ids of the adapted modules."""

    def __init__(self, names: tuple[str, ...], modules: frozenset[int]) -> None:
        self.names, self.modules = names, modules

    def run(self, module: Adapted, call: str, x: Any) -> Any:
        """Return the module's output, each row computed with its own adapter.

        x: (batch, ...). If all rows share x, (1, ...) or a slice of a table, the output has one
        entry for each row.
        """
        used = [name if name in module.adapters else "" for name in self.names]
        base: Any = module.base if call == "forward" else module.base.project
        run = {
            name: module.compose(base, call, (name,) if name else ())
            for name in dict.fromkeys(used)
        }
        shared = isinstance(x, slice) or x.shape[0] == 1
        if not shared and x.shape[0] != len(used):
            raise ValueError(
                f"per_row: {len(used)} names for a batch of shape {tuple(x.shape)}: give one name "
                "for each row")
        if len(run) == 1:
            return run[used[0]](x)
        if shared:
            outputs = [each(x) for each in run.values()]
            outputs = [y.reshape(1, *y.shape) if isinstance(x, slice) else y for y in outputs]
            entry = np.array([list(run).index(name) for name in used])
            return taken(ops.concat(*outputs, axis=0), entry)
        rows = {name: np.flatnonzero([other == name for other in used]) for name in run}
        outputs = [run[name](taken(x, at)) for name, at in rows.items()]
        order = np.argsort(np.concatenate([*rows.values()]))
        return taken(ops.concat(*outputs, axis=0), order)


def taken(x: Any, rows: np.ndarray) -> Any:
    """Return x[rows] along the first axis; x: a Tensor, or ids on the host."""
    if not isinstance(x, Tensor):
        return x[rows]
    flat = x.reshape(x.shape[0], int(np.prod(x.shape[1:])))
    return ops.embedding(flat, rows).reshape(len(rows), *x.shape[1:])
