"""A run as a file: what makes it the run that it is, and all that decides how it goes on."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import chain
from typing import Any

import numpy as np

from .. import __version__
from ..adapters.transaction import undone
from ..backend import Array, asnumpy, current, xp
from ..backend.settings import is_plain, own
from ..files import checkpoint as files
from ..nn import Module, Parameter, generators
from .loss_scale import LEAST, LossScale
from .optim import Optimizer

REMEDY = "lower the learning rate or clip"
PLAIN = (bool, int, float, str, bytes, type(None), np.dtype)
MANY, LONG = 5, 80  # differences that an error tells, characters of one value


@dataclass
class History:
    """What a run did: losses[i] and lrs[i] of step i, held_out as (steps done, loss)."""

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


class Run:
    """The state of a run of `steps` updates, which looks at held-out batches at `looks`."""

    def __init__(
        self, model: Module, optimizer: Optimizer, loss_scale: LossScale | None, steps: int,
        looks: list[int],
    ) -> None:
        self.model, self.optimizer, self.loss_scale = model, optimizer, loss_scale
        self.steps, self.looks, self.history = steps, looks, History()
        self.waiting: list[Any] = []  # losses that nobody has read yet, where the arrays are

    def settle(self) -> None:
        """Bring the losses to the host; FloatingPointError where training has gone wrong."""
        losses, scale, read = self.history.losses, self.loss_scale, len(self.history.losses)
        losses += [float(asnumpy(x)) for x in self.waiting]
        self.waiting.clear()
        bad = [i for i in range(read, len(losses)) if not math.isfinite(losses[i])]
        if bad and (scale or not current().on_host):  # else backward has looked
            raise FloatingPointError(
                f"fit: step {bad[0]}: the loss or a gradient is not finite: {REMEDY}"
            )
        if scale and float(asnumpy(scale.scale)) < LEAST:
            raise FloatingPointError(
                f"fit: before step {len(losses)}: gradients are not finite however small "
                f"the loss scale is: {REMEDY}"
            )
        self.check()

    def check(self) -> None:
        """FloatingPointError if an update has made a parameter that is not finite."""
        held = self.optimizer.parameters
        finite = asnumpy(xp.stack([xp.isfinite(p.data).all() for p in held.values()]))
        for name, fine in zip(held, finite):
            if not fine:
                raise self.wrong(f"{name} is not finite")

    def wrong(self, what: str) -> FloatingPointError:
        """The error of a run that has gone wrong, where it stands."""
        remedy = REMEDY if self.history.lrs else "look at the weights that it starts from"
        return FloatingPointError(f"fit: {self.when()} {what}: {remedy}")

    def when(self) -> str:
        """Where the run stands."""
        done = len(self.history.lrs)
        return f"after {done} of {self.steps} steps" if done else "before the first step"

    def arrays(self) -> dict[str, Array]:
        """What training writes to, by its name in the file."""
        trained = {f"param.{name}": p.data for name, p in self.optimizer.parameters.items()}
        return trained | {f"optim.{name}": a for name, a in self.optimizer.arrays().items()}

    def save(self, path: str | os.PathLike[str], what: Mapping[str, str]) -> None:
        """Write the run as it stands. what: see `identity`."""
        history, scale = self.history, self.loss_scale
        numbers = {
            "losses": history.losses, "lrs": history.lrs,
            "held_out": [value for _, value in history.held_out],
            "loss_scale": [*scale.state_dict().values()] if scale else [],
        }
        arrays = {name: asnumpy(a) for name, a in self.arrays().items()}
        arrays |= {name: np.array(held, "float64") for name, held in numbers.items()}
        meta = {
            "kind": "run", "what": dict(what), "done": len(history.lrs), "t": self.optimizer.t,
            "generators": {path: _state(g) for path, g in generators(self.model).items()},
        }
        files.write(path, arrays, meta)

    def load(self, path: str | os.PathLike[str], what: Mapping[str, str]) -> int:
        """Go on from the file, with all of it or none; returns how many steps are done.

        Raises ValueError, in the file's name, where it is damaged or of another run.
        """
        into, draws, scale = self.arrays(), generators(self.model), self.loss_scale
        with files.opened(path, "run") as file:
            was, done, t, states = file.facts(what=dict, done=int, t=int, generators=dict)
            if not all(isinstance(said, str) for said in was.values()):
                raise file.wrong("what it says of its run is not text")
            if was != what:
                raise ValueError(
                    f"{path} is a checkpoint of another run: {differences(was, what)}: use the "
                    "same settings, another file, or resume=False (on the command line: another "
                    "--out, or --restart)"
                )
            if not 0 <= done <= min(t, self.steps):
                raise file.wrong(f"{done} of {self.steps} steps are done in it, by {t} updates")
            looks = [at for at in self.looks if at <= done]
            if file.shapes.get("held_out") == (len(looks) - 1,) and looks[-1] == done:
                looks.pop()  # it was interrupted before that look
            lengths = {
                "losses": done,
                "lrs": done,
                "held_out": len(looks),
                "loss_scale": 2 * bool(scale),
            }
            shapes = {name: (n,) for name, n in lengths.items()}
            read = file.arrays({name: a.shape for name, a in into.items()} | shapes)
            for name, array in read.items():
                if array.dtype != (dtype := into[name].dtype if name in into else "float64"):
                    raise file.wrong(f"{name} in it is {array.dtype}, not {dtype}")
            if states.keys() != draws.keys():
                raise file.wrong("its generators are not those of the model")
            for name, draw in draws.items():
                if not _fits(draw, states[name]):
                    raise file.wrong(f"what it holds is no state of the generator of {name}")
            losses, lrs, held_out, kept = (read[name].tolist() for name in shapes)
            if scale and not (kept[0] > 0 and kept[1] in range(scale.patience)):
                raise file.wrong(f"its loss scale is {kept[0]:g}, held for {kept[1]:g} updates")
        with undone(self.model, self.optimizer, *[scale] * bool(scale)):
            for name, draw in draws.items():
                draw.bit_generator.state = states[name]
            self.optimizer.t, self.optimizer.lr = t, [self.optimizer.lr, *lrs][-1]
            if scale:
                scale.load_state_dict({"scale": kept[0], "good": int(kept[1])})
            self.history = History(losses, lrs, [*zip(looks, held_out)])
            # last, for it undoes its own: all arrays or none
            files.fill(into, {name: read[name] for name in into}, str(path))
        return int(done)


def identity(
    model: Module, optimizer: Optimizer, loss: Callable[..., Any], loss_scale: LossScale | None,
    about: Mapping[str, Any], rates: Sequence[float], **settings: Any,
) -> dict[str, str]:
    """Everything that makes a run what it is, all that changes a bit of it: in words, by name.

    The values that training starts from are not in it: after an interruption they are gone from
    this process, in which the same call has to go on.
    """
    trained = {p: name for name, p in optimizer.parameters.items()}
    settings |= {
        "minilora": __version__, "library": current().name, "plain": is_plain(),
        "ops replaced": sorted(op.__name__ for op in own.replaced), "loss": _name(loss),
        "frozen weights": [p.data for p in model.parameters() if p not in trained],
        "optimizer": _name(type(optimizer)),
    }
    if loss_scale:
        settings |= {
            "loss_scale.start": loss_scale.start,
            "loss_scale.patience": loss_scale.patience,
        }
    for name, value in vars(optimizer).items():
        if name not in ("parameters", "state", "state_names", "t", "lr"):
            settings[f"optimizer.{name}"] = value
    for name, value in about.items():
        if in_words(value) is None:
            raise TypeError(f"fit: about: {name} must be a number, words or an array, not "
                            f"a {type(value).__name__}")
        settings[f"about.{name}"] = value
    draws = generators(model)
    for path, module in model.named_modules():
        at = path or "model"
        settings[at] = _name(type(module))
        for name, value in vars(module).items():
            if value is not None and name not in ("training", "locked"):  # these change no bit
                settings[f"{at}.{name}"] = value
        if path in draws:
            settings[f"{at}.rng"] = _name(type(draws[path].bit_generator))
            if getattr(module, "rate", getattr(module, "dropout", None)) != 0:
                settings[f"{at}.training"] = module.training
    described = {name: in_words(value) for name, value in settings.items()}
    words = {name: said for name, said in described.items() if said is not None}
    words["learning rates"] = f"up to {max(rates):g}, {in_words(np.array(rates))}"
    for name, p in {**optimizer.parameters, **dict(model.named_parameters())}.items():
        kind = "trained" if p in trained and p.requires_grad else "frozen"
        other = f" as {trained[p]}" if trained.get(p, name) != name else ""
        words[name] = f"{p.shape} {p.dtype}, {kind}{other}"
    return words


def in_words(value: Any) -> str | None:
    """A setting in a few words; None for what is none, such as modules and parameters.

    Numbers and text as they are; whatever is long, and arrays, as the digest of their bits.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, PLAIN) and len(words := repr(value).removesuffix(".0")) < LONG:
        return words
    short = isinstance(value, list | tuple) and len(value) < 9
    if short and all(isinstance(x, PLAIN) for x in value):
        return f"({', '.join(str(in_words(x)) for x in value)})"
    leaves = _leaves(value)
    first = next(leaves, None)
    return None if first is None else f"digest {files.fingerprint(chain([first], leaves))}"


def _leaves(value: Any) -> Iterator[np.ndarray]:
    """The numbers and texts in a value, as arrays on the host, each after its dtype and shape."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        for key, item in value.items():
            if held := [*_leaves(item)]:
                yield from (*_leaves(key), *held)
    elif isinstance(value, list | tuple | Set):
        for item in sorted(value, key=repr) if isinstance(value, Set) else value:
            yield from _leaves(item)
    elif isinstance(value, PLAIN):
        yield np.frombuffer(repr(value).encode(), np.uint8)
    elif hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, Parameter):
        yield np.frombuffer(f"{value.dtype}{tuple(value.shape)}".encode(), np.uint8)
        yield asnumpy(value)  # of an array, anyone's, or of a Tensor


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """ "steps: 5 then, 6 now; alpha of blocks.0.q and of 7 more: 8 then, 16 now": the first few."""
    alike: dict[tuple[str, ...], list[str]] = {}
    for name in {**now, **was}:
        old, new = was.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            path, _, last = name.rpartition(".")
            alike.setdefault((last, old[:LONG], new), []).append(path)
    said = [
        last + (f" of {paths[0]}" if paths[0] not in ("", "about") else "")
        + (f" and of {len(paths) - 1} more" if len(paths) > 1 else "") + f": {old} then, {new} now"
        for (last, old, new), paths in alike.items()
    ]
    rest = len(said) - MANY
    return "; ".join(said[:MANY]) + (f"; and {rest} more" if rest > 0 else "")


def _name(what: Any) -> str:
    return getattr(what, "__qualname__", type(what).__qualname__)


def _state(generator: np.random.Generator) -> dict[str, Any]:
    """Its state in JSON's types: some have arrays in theirs."""
    state = json.dumps(generator.bit_generator.state, default=lambda array: array.tolist())
    return dict(json.loads(state))


def _fits(generator: np.random.Generator, state: Any) -> bool:
    """Could the generator go on from this state? Asked of another one of its kind."""
    other = np.random.Generator(type(generator.bit_generator)())
    try:
        other.bit_generator.state = state
    except Exception:  # whatever NumPy makes of it
        return False
    return bool(_state(other) == state)
