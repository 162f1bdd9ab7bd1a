"""The state of a training run, its checkpoint, and the settings that identify it."""

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
from ..adapters.context import context
from ..adapters.transaction import restore_on_error
from ..backend import Array, asnumpy, current, xp
from ..backend.settings import is_plain, thread_settings
from ..checks import a
from ..files import checkpoint as files
from ..nn import Module, Parameter, generators
from ..state_dict import fill
from .loss_scale import LEAST, LossScale
from .optim import Optimizer

REMEDY = "lower the learning rate or clip"
PLAIN = (bool, int, float, str, bytes, type(None), np.dtype)
MANY, LONG = 5, 80  # the most differences in an error, characters of a value


@dataclass
class History:
    """losses[i] and lrs[i] of step i, and held_out as (steps done, loss)."""

    losses: list[float] = field(default_factory=list)
    lrs: list[float] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)


class Run:
    """The state of a run of `steps` updates, with held-out losses after each of `eval_steps`."""

    def __init__(
        self, model: Module, optimizer: Optimizer, loss_scale: LossScale | None, steps: int,
        eval_steps: list[int],
    ) -> None:
        self.model, self.optimizer, self.loss_scale = model, optimizer, loss_scale
        self.steps, self.eval_steps, self.history = steps, eval_steps, History()
        self.waiting: list[Any] = []  # losses of the last steps, still on the device

    def settle(self) -> None:
        """Copy the waiting losses to the host; FloatingPointError if anything is not finite."""
        losses, scale, start = self.history.losses, self.loss_scale, len(self.history.losses)
        losses += [float(asnumpy(x)) for x in self.waiting]
        self.waiting.clear()
        bad = [i for i in range(start, len(losses)) if not math.isfinite(losses[i])]
        if bad and (scale or not current().on_host):  # else backward has checked
            raise FloatingPointError(
                f"fit: step {bad[0]}: the loss or a gradient is not finite: {REMEDY}"
            )
        if scale and float(asnumpy(scale.scale)) < LEAST:
            raise FloatingPointError(
                f"fit: before step {len(losses)}: gradients are not finite at any loss scale: "
                f"{REMEDY}"
            )
        self.check()

    def check(self) -> None:
        """Raise FloatingPointError if a parameter is not finite after an update."""
        parameters = self.optimizer.parameters
        finite = asnumpy(xp.stack([xp.isfinite(p.data).all() for p in parameters.values()]))
        for name, is_finite in zip(parameters, finite):
            if not is_finite:
                raise self.wrong(f"{name} is not finite")

    def wrong(self, problem: str) -> FloatingPointError:
        """Return the error for `problem`, with the number of steps done and a remedy."""
        remedy = REMEDY if self.history.lrs else "check the weights that training starts from"
        return FloatingPointError(f"fit: {self.when()} {problem}: {remedy}")

    def when(self) -> str:
        """Return how many steps are done, in words."""
        done = len(self.history.lrs)
        return f"after {done} of {self.steps} steps" if done else "before the first step"

    def arrays(self) -> dict[str, Array]:
        """Return the arrays that training changes, by their names in the file."""
        trained = {f"param.{name}": p.data for name, p in self.optimizer.parameters.items()}
        return trained | {f"optim.{name}": a for name, a in self.optimizer.arrays().items()}

    def codes(self, settings: Mapping[str, str], done: int) -> dict[str, int]:
        """Return checksums of what the ranks of a group must start with alike, by name."""
        draws = [_state(rng) for rng in generators(self.model).values()]
        texts = [json.dumps(x).encode() for x in (dict(settings), draws)]
        arrays = [asnumpy(a) for a in self.arrays().values()]
        return {
            "settings of the run": int(files.fingerprint([np.frombuffer(texts[0], np.uint8)]), 16),
            "steps done in the checkpoint": done,
            "weights to train": int(files.fingerprint(arrays), 16),
            "random generators": int(files.fingerprint([np.frombuffer(texts[1], np.uint8)]), 16),
        }

    def save(self, path: str | os.PathLike[str], settings: Mapping[str, str]) -> None:
        """Write the run's state to `path`. settings: the result of `identity`."""
        history, scale = self.history, self.loss_scale
        numbers = {
            "losses": history.losses, "lrs": history.lrs,
            "held_out": [value for _, value in history.held_out],
            "loss_scale": [*scale.state_dict().values()] if scale else [],
        }
        arrays = {name: asnumpy(a) for name, a in self.arrays().items()}
        arrays |= {name: np.array(values, "float64") for name, values in numbers.items()}
        meta = {
            "kind": "run", "what": dict(settings), "done": len(history.lrs), "t": self.optimizer.t,
            "generators": {path: _state(g) for path, g in generators(self.model).items()},
        }
        files.write(path, arrays, meta)

    def load(self, path: str | os.PathLike[str], settings: Mapping[str, str]) -> int:
        """Load the run's state, all of it or nothing. Return the number of steps done.

        Raises ValueError that names the file if it is damaged or belongs to another run.
        """
        into, rngs, scale = self.arrays(), generators(self.model), self.loss_scale
        with files.opened(path, "run") as file:
            was, done, t, states = file.facts(what=dict, done=int, t=int, generators=dict)
            if not all(isinstance(value, str) for value in was.values()):
                raise file.wrong("its settings of the run are not text")
            if was != settings:
                raise ValueError(
                    f"{path} is a checkpoint of another run: {differences(was, settings)}: use the "
                    "same settings, another file, or resume=False (on the command line: another "
                    "--out, or --restart)"
                )
            if not 0 <= done <= min(t, self.steps):
                raise file.wrong(f"it has {done} of {self.steps} steps done, after {t} updates")
            evaluated = [step for step in self.eval_steps if step <= done]
            if file.shapes.get("held_out") == (len(evaluated) - 1,) and evaluated[-1] == done:
                evaluated.pop()  # it was interrupted before this evaluation
            lengths = {
                "losses": done,
                "lrs": done,
                "held_out": len(evaluated),
                "loss_scale": 2 * bool(scale),
            }
            shapes = {name: (n,) for name, n in lengths.items()}
            read = file.arrays({name: a.shape for name, a in into.items()} | shapes)
            for name, array in read.items():
                if array.dtype != (dtype := into[name].dtype if name in into else "float64"):
                    raise file.wrong(f"its {name} is {array.dtype}, not {dtype}")
            if states.keys() != rngs.keys():
                raise file.wrong("its random generators are not those of the model")
            for name, rng in rngs.items():
                if not _fits(rng, states[name]):
                    raise file.wrong(f"its state of the random generator of {name} is invalid")
            losses, lrs, held_out, scaling = (read[name].tolist() for name in shapes)
            if scale and not (scaling[0] > 0 and scaling[1] in range(scale.patience)):
                raise file.wrong(
                    f"its loss scale is {scaling[0]:g}, unchanged for {scaling[1]:g} updates"
                )
        with restore_on_error(self.model, self.optimizer, *[scale] * bool(scale)):
            for name, rng in rngs.items():
                rng.bit_generator.state = states[name]
            self.optimizer.t, self.optimizer.lr = t, [self.optimizer.lr, *lrs][-1]
            if scale:
                scale.load_state_dict({"scale": scaling[0], "good": int(scaling[1])})
            self.history = History(losses, lrs, [*zip(evaluated, held_out)])
            # last, because it restores the arrays itself where it fails
            fill(into, {name: read[name] for name in into}, str(path))
        return int(done)


def identity(
    model: Module, optimizer: Optimizer, loss: tuple[Callable[..., Any], Callable[..., Any]],
    loss_scale: LossScale | None, about: Mapping[str, Any], rates: Sequence[float], **settings: Any,
) -> dict[str, str]:
    """Return all settings that may change a bit of the run's result: name -> text.

    loss: the loss and its weight, both functions.

    The initial values of trained parameters are not among them: after an interruption the process
    has lost them, and the same call must still resume.
    """
    trained = {p: name for name, p in optimizer.parameters.items()}
    settings |= {
        "minilora": __version__, "library": current().name, "plain": is_plain(),
        "ops replaced": sorted(op.__name__ for op in thread_settings.replaced),
        "loss": _name(loss[0]), "weight": _name(loss[1]),
        "frozen weights": [p.data for p in model.parameters() if p not in trained],
        "optimizer": _name(type(optimizer)),
    }
    now = context()
    if now.rows is not None:
        settings["adapters of the batch rows"] = now.rows.names
    if now.prompt is not None:
        settings["prompt"] = now.prompt
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
            raise TypeError(f"fit: about[{name!r}] must be a number, text or an array, not "
                            f"{a(type(value).__name__)}")
        settings[f"about.{name}"] = value
    rngs = generators(model)
    for path, module in model.named_modules():
        prefix = path or "model"
        settings[prefix] = _name(type(module))
        for name, value in vars(module).items():
            if value is not None and name not in ("training", "locked"):  # these change no bit
                settings[f"{prefix}.{name}"] = value
        if path in rngs:
            settings[f"{prefix}.rng"] = _name(type(rngs[path].bit_generator))
    texts = {name: in_words(value) for name, value in settings.items()}
    words = {name: text for name, text in texts.items() if text is not None}
    words["learning rates"] = f"up to {max(rates):g}, {in_words(np.array(rates))}"
    for name, p in {**optimizer.parameters, **dict(model.named_parameters())}.items():
        kind = "trained" if p in trained and p.requires_grad else "frozen"
        other = f" as {trained[p]}" if trained.get(p, name) != name else ""
        words[name] = f"{p.shape} {p.dtype}, {kind}{other}"
    return words


def dropout_off(model: Module) -> list[str]:
    """Return the paths of the modules whose dropout is above 0, but which are in eval mode."""
    rngs = generators(model)
    off = ((path, module) for path, module in model.named_modules() if not module.training)
    return [path for path, module in off if path in rngs
            and getattr(module, "rate", getattr(module, "dropout", 0)) != 0]


def in_words(value: Any) -> str | None:
    """Return a setting as short text; None for modules, parameters and other objects.

    Numbers and short text appear as they are, arrays and long values as a digest of their bits.
    """
    value = value.item() if isinstance(value, np.generic) else value
    if isinstance(value, np.dtype):
        return str(value)
    if isinstance(value, PLAIN) and len(text := repr(value).removesuffix(".0")) < LONG:
        return text
    short = isinstance(value, list | tuple) and len(value) < 9
    if short and all(isinstance(x, PLAIN) for x in value):
        return f"({', '.join(str(in_words(x)) for x in value)})"
    leaves = _leaves(value)
    first = next(leaves, None)
    return None if first is None else f"digest {files.fingerprint(chain([first], leaves))}"


def _leaves(value: Any) -> Iterator[np.ndarray]:
    """Yield the numbers and texts in a value as host arrays, after each array's dtype and shape."""
    if is_dataclass(value) and not isinstance(value, type):
        value = {f.name: getattr(value, f.name) for f in fields(value)}
    if isinstance(value, Mapping):
        for key, item in value.items():
            if leaves := [*_leaves(item)]:
                yield from (*_leaves(key), *leaves)
    elif isinstance(value, list | tuple | Set):
        for item in sorted(value, key=repr) if isinstance(value, Set) else value:
            yield from _leaves(item)
    elif isinstance(value, PLAIN):
        yield np.frombuffer(repr(value).encode(), np.uint8)
    elif hasattr(value, "dtype") and hasattr(value, "shape") and not isinstance(value, Parameter):
        yield np.frombuffer(f"{value.dtype}{tuple(value.shape)}".encode(), np.uint8)
        yield asnumpy(value)  # of an array of any library, or a Tensor


def differences(was: Mapping[str, str], now: Mapping[str, str]) -> str:
    """Return the first few differences.

    "steps: 5 then, 6 now; alpha of blocks.0.q and of 7 more: 8 then, 16 now"
    """
    groups: dict[tuple[str, ...], list[str]] = {}
    for name in {**now, **was}:
        old, new = was.get(name, "nothing"), now.get(name, "nothing")
        if old != new:
            path, _, last = name.rpartition(".")
            groups.setdefault((last, old[:LONG], new), []).append(path)
    lines = [
        last + (f" of {paths[0]}" if paths[0] not in ("", "about") else "")
        + (f" and of {len(paths) - 1} more" if len(paths) > 1 else "") + f": {old} then, {new} now"
        for (last, old, new), paths in groups.items()
    ]
    rest = len(lines) - MANY
    return "; ".join(lines[:MANY]) + (f"; and {rest} more" if rest > 0 else "")


def _name(thing: Any) -> str:
    return getattr(thing, "__qualname__", type(thing).__qualname__)


def _state(generator: np.random.Generator) -> dict[str, Any]:
    """Return the generator's state as JSON types (some states contain arrays)."""
    state = json.dumps(generator.bit_generator.state, default=lambda array: array.tolist())
    return dict(json.loads(state))


def _fits(generator: np.random.Generator, state: Any) -> bool:
    """Return whether this kind of generator accepts the state; tried on a new one."""
    other = np.random.Generator(type(generator.bit_generator)())
    try:
        other.bit_generator.state = state
    except Exception:  # NumPy raises several kinds
        return False
    return bool(_state(other) == state)
