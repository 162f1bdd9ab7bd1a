"""What ranks send in a step of data-parallel training: bytes counted, seconds by a model.

The bytes are those of the arrays that training itself sends (training/shards.py), here on shapes.
The model of a network has two numbers. A message of n bytes takes latency + n / bandwidth, and all
p ranks send at the same time around a ring (Thakur, Rabenseifner and Gropp 2005; Patarasuk and Yuan
2009). It knows no congestion, no computation meanwhile, and no slower rank.

all-gather  p - 1 messages of a rank's n bytes                  "exact"
all-reduce  2 (p - 1) messages of n / p bytes                   "fast"
"""

from __future__ import annotations

from dataclasses import dataclass

from .. import methods
from ..backend import using
from ..checks import integer
from ..models.config import ModelConfig
from ..models.families import SHAPES, build
from ..training.shards import SHARDS, length
from ..words import our_words


@dataclass(frozen=True)
class Network:
    """bandwidth: bytes a second that a rank sends   latency: seconds before a message arrives"""

    name: str
    bandwidth: float
    latency: float


NETWORKS = (Network("1 Gbit/s", 0.125e9, 50e-6), Network("100 Gbit/s", 12.5e9, 5e-6))


@dataclass(frozen=True)
class Traffic:
    """A step of one rank among `ranks`.

    trained  parameters           given    bytes of gradients that it gives to MPI
    sent     bytes that it sends  seconds  name of a network -> time, by the model
    """

    trained: int
    given: int
    sent: int
    seconds: dict[str, float]


@our_words
def traffic(
    shape: str | ModelConfig, method: methods.Method, ranks: int, *, shards: int | None = None,
    reduce: str = "exact",
) -> Traffic:
    """Plan what each rank sends in a step, for a known shape (see SHAPES) or any config.

    shards: parts of a batch; None: 8, or one for each rank if there are more
    reduce: "exact" or "fast", as for `MPI`

    The gradients are float32. The rank with the most shards counts. Raises ValueError for an
    unknown name, and for more ranks than shards.
    """
    integer("traffic", "ranks", ranks, 1)
    shards = max(SHARDS, ranks) if shards is None else integer("traffic", "shards", shards, ranks)
    if isinstance(shape, str) and shape not in SHAPES:
        raise ValueError(f"traffic: unknown shape {shape!r}: choose from {', '.join(SHAPES)}")
    if reduce not in ("exact", "fast"):
        raise ValueError(f'traffic: reduce must be "exact" or "fast", not {reduce!r}')
    with using("shapes"):
        model = build(SHAPES[shape] if isinstance(shape, str) else shape, rng=0)
        if not isinstance(method, methods.Full):
            method.apply(model, rng=0)
        parameters = model.trainable_parameters()
        given = 4 * length(parameters) * (-(-shards // ranks) if reduce == "exact" else 1)
        trained = sum(p.size for p in parameters.values())
    others = ranks - 1
    messages, size = (others, given) if reduce == "exact" else (2 * others, -(-given // ranks))
    seconds = {net.name: messages * (net.latency + size / net.bandwidth) for net in NETWORKS}
    return Traffic(trained, given if others else 0, messages * size, seconds)
