"""Find modules and parameters in a model by path, and replace them by identity.

Paths are those of the base model: an adapted module has its base's path. Types decide, never
names, so a user's own attribute may be called `base`. An object in several places is replaced in
all of them.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..nn import Embedding, LayerNorm, Linear, Module, Parameter, RMSNorm
from .protocol import Adapted


def bare(module: Module) -> Any:
    """Return the module without the adapters around it."""
    return module.base if isinstance(module, Adapted) else module


def walk(module: Module, path: str = "") -> Iterator[tuple[str, Module]]:
    """Yield (path, module) for the model and all modules below, adapted ones with their adapters.

    A module in two places comes twice.
    """
    yield path, module
    for name, child in bare(module).children():
        if isinstance(child, Module):
            yield from walk(child, f"{path}.{name}" if path else name)


def adapted(model: Module) -> dict[str, Adapted]:
    """Return the modules that have adapters, by path, each once."""
    paths: dict[Adapted, str] = {}
    for path, module in walk(model):
        if isinstance(module, Adapted):
            paths.setdefault(module, path)
    return {path: module for module, path in paths.items()}


def adaptable(model: Module) -> dict[str, Any]:
    """Return the layers that A and B can adapt, by path: Linear and Embedding, adapted or not."""
    return {path: m for path, m in walk(model) if path and isinstance(bare(m), Linear | Embedding)}


def parameters(module: Module, path: str = "") -> Iterator[tuple[str, Module, Parameter]]:
    """Yield (name, its module, parameter) for the parameters in use, without the adapters' own.

    In order of assignment. A parameter in two places comes twice.
    """
    for name, child in bare(module).children():
        at = f"{path}.{name}" if path else name
        if isinstance(child, Parameter):
            yield at, bare(module), child
        else:
            yield from parameters(child, at)


def is_bias(name: str, module: Module, p: Parameter) -> bool:
    """Return whether the parameter is a bias: it has one axis, and is not the gain of a norm."""
    is_gain = isinstance(module, LayerNorm | RMSNorm) and name.endswith(".g")
    return len(p.shape) == 1 and not is_gain


def swap(model: Module, new: Mapping[int, Module | Parameter]) -> None:
    """Replace modules and parameters everywhere in the model; new: id(old) -> new."""
    seen: set[int] = set()

    def enter(module: Module) -> Module:
        if id(module) not in seen:
            seen.add(id(module))
            attributes = vars(module)
            for name, value in list(attributes.items()):
                if isinstance(module, Adapted) and name == "base":
                    enter(value)  # the base of an adapted module stays
                elif (other := visit(value)) is not value:
                    attributes[name] = other
        return module

    def visit(value: Any) -> Any:
        if isinstance(value, Parameter):
            return new.get(id(value), value)
        if isinstance(value, Module):
            return enter(new.get(id(value), value))  # type: ignore[arg-type]
        if isinstance(value, tuple):
            items = [visit(item) for item in value]
            same = all(a is b for a, b in zip(items, value))
            return value if same else getattr(value, "_make", tuple)(items)
        if isinstance(value, list | dict):
            for key in list(value) if isinstance(value, dict) else range(len(value)):
                if (other := visit(value[key])) is not value[key]:
                    value[key] = other
        return value

    if new:
        enter(model)
