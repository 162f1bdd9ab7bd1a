"""The processes that train one model together: ranks 0, 1, ... of a group.

`Alone` is a group of this one process. `MPI` is a group of the processes that mpiexec started; the
transport is MPI's. Arrays travel through the host, also from a GPU: LoRA's gradients are small.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from ..backend import Quantised, current
from ..backend.threads import return_freed_memory
from ..checks import integer
from ..extras import need
from ..nn import Parameter
from ..words import our_words

ALIGNED = 64  # bytes: where an array in shared memory begins
# What mpiexec tells its processes: MPICH's and its relatives', Open MPI's, and PMIx.
RANKS = ("PMI_RANK", "OMPI_COMM_WORLD_RANK", "PMIX_RANK")
SIZES = ("PMI_SIZE", "OMPI_COMM_WORLD_SIZE")


class Group:
    """Process `rank` of `size` processes, and how many shards a batch is cut into.

    shards: parts of a batch. None: 8; or 1 where accumulation_steps gives several batches to an
    update. exact: the sum of the gradients has the same bits on any number of ranks.
    """

    rank, size, exact = 0, 1, True

    def __init__(self, shards: int | None = None) -> None:
        self.shards = None if shards is None else integer(type(self).__name__, "shards", shards, 1)
        self.sent = 0  # bytes of gradients that this rank gave to the transport in the last step

    def gather(self, flat: np.ndarray) -> np.ndarray:
        """Return the arrays of all ranks, (size, *shape), the same on each. All must call it."""
        raise NotImplementedError(f"{type(self).__name__} has no gather")

    def add(self, flat: np.ndarray) -> None:
        """Add up the arrays of all ranks, in place, in an order of the transport's choice."""
        raise NotImplementedError(f"{type(self).__name__} has no add")

    def share(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Return equal arrays, which the ranks of a node have in memory once. They are read-only
        if there are several such ranks. All ranks must have equal arrays."""
        return list(arrays)


class Alone(Group):
    """This process alone. `fit(..., group=Alone())` has the bits of `MPI()` on any number of ranks.
    """

    @our_words
    def __init__(self, shards: int | None = None) -> None:
        super().__init__(shards)

    def gather(self, flat: np.ndarray) -> np.ndarray:
        return flat[None]


class MPI(Group):
    """The processes that mpiexec started: `mpiexec -n 4 python -m mpi4py script.py`.

    reduce  "exact": all ranks gather the gradients of all shards, and add them up in one order: the
            same bits on any number of ranks. "fast": each rank adds up its own, and MPI adds up
            the sums (Allreduce). It sends less if there are more shards than two, and the bits
            depend on the number of ranks. It is for full fine-tuning

    Raises ImportError without mpi4py or an MPI library. Raises RuntimeError if mpi4py sees another
    number of processes than mpiexec started, and for several processes without `-m mpi4py`: there,
    a rank that raises would leave the others waiting for ever.
    """

    @our_words
    def __init__(self, shards: int | None = None, reduce: str = "exact") -> None:
        super().__init__(shards)
        if reduce not in ("exact", "fast"):
            raise ValueError(f'MPI: reduce must be "exact" or "fast", not {reduce!r}')
        try:
            self._mpi = need("mpi4py.MPI", "several ranks", "mpi")
        except RuntimeError as error:
            raise ImportError(f"mpi4py has no MPI library ({error}): pip install mpich") from error
        self.exact = reduce == "exact"
        self._world, self._windows = self._mpi.COMM_WORLD, list[Any]()
        self.rank, self.size = self._world.Get_rank(), self._world.Get_size()
        self._node = self._world.Split_type(self._mpi.COMM_TYPE_SHARED)
        self.node_rank, self.node_size = self._node.Get_rank(), self._node.Get_size()
        started = [int(os.environ[name]) for name in SIZES if name in os.environ]
        if started and self.size not in started:
            raise RuntimeError(
                f"MPI: mpiexec started {started[0]} processes, and mpi4py sees {self.size}: they "
                "belong to two MPI libraries: start with the mpiexec of the library that `python "
                "-m mpi4py --mpi-library` prints"
            )
        if self.size > 1 and "mpi4py.run" not in sys.modules:
            raise RuntimeError(
                "MPI: a rank that raises would leave the others waiting for ever: start with "
                f"`mpiexec -n {self.size} python -m mpi4py script.py`"
            )

    def gather(self, flat: np.ndarray) -> np.ndarray:
        every = np.empty((self.size, *flat.shape), flat.dtype)
        self._world.Allgather(np.ascontiguousarray(flat), every)
        return every

    def add(self, flat: np.ndarray) -> None:
        self._world.Allreduce(self._mpi.IN_PLACE, flat)

    def share(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        if self.node_size == 1 or not arrays:
            return list(arrays)
        starts = np.cumsum([0] + [-(-array.nbytes // ALIGNED) * ALIGNED for array in arrays])
        first = self.node_rank == 0
        window = self._mpi.Win.Allocate_shared(int(starts[-1]) if first else 0, 1, comm=self._node)
        memory, shared = window.Shared_query(0)[0], list[np.ndarray]()
        window.Fence()
        for array, start in zip(arrays, starts.tolist()):
            own = np.frombuffer(memory, array.dtype, math.prod(array.shape), start)
            own = own.reshape(array.shape)
            if first:
                own[...] = array
            own.flags.writeable = False
            shared.append(own)
        window.Fence()
        self._windows.append(window)  # it lives as long as the arrays
        return shared


def started() -> int | None:
    """Return the rank that mpiexec gave this process; None: mpiexec did not start it."""
    return next((int(os.environ[name]) for name in RANKS if name in os.environ), None)


def share_frozen(group: Group, parameters: Sequence[Parameter]) -> None:
    """Keep the arrays of these parameters once a node. Those in a GPU's memory stay there."""
    if current().on_host:
        for p, data in zip(parameters, _shared(group, [p.data for p in parameters])):
            if data is not p.data:  # else it would count as a write
                p.data = data
        return_freed_memory()


def _shared(group: Group, data: list[Any]) -> list[Any]:
    """Return equal data of parameters; that of a quantised matrix has several arrays."""
    new = iter(group.share([a for d in data for a in getattr(d, "arrays", [d])]))
    return [d.on(*[next(new) for _ in d.arrays]) if isinstance(d, Quantised) else next(new)
            for d in data]


def in_order(
    group: Group, pairs: Sequence[tuple[float, float]], count: int
) -> list[tuple[float, float]]:
    """Return `count` pairs of numbers, of which each rank has those at rank, rank + size, ..."""
    rows = np.zeros((-(-count // group.size), 2))
    rows[: len(pairs)] = np.array(pairs).reshape(-1, 2)
    every = group.gather(rows)
    return [tuple(every[i % group.size, i // group.size].tolist()) for i in range(count)]


def check_equal(group: Group, codes: dict[str, int]) -> None:
    """Raise ValueError, on all ranks, if a code is not the same on all of them.

    codes: the name of what must be equal -> a checksum or number
    """
    for name, column in zip(codes, group.gather(np.array([*codes.values()], np.int64)).T):
        for rank in np.flatnonzero(column != column[0])[:1]:
            raise ValueError(
                f"fit: {name}: rank {rank} has others than rank 0: give all ranks the same script, "
                "seeds and files"
            )
