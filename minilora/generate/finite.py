"""Where numbers first stop being finite."""

from __future__ import annotations

from typing import Any

from ..backend import Array, current, xp
from ..backend.blocks import restoring
from ..backend.flags import quietly
from ..nn import Module, evaluating
from ..tensor import Tensor, no_grad


def first_not_finite(model: Module, *inputs: Any) -> str:
    """Name where the numbers of model(*inputs) first stop being finite; "" if all are finite.

    It is the first parameter that is not finite ("the parameter blocks.0.attn.q.W"), else the first
    module to finish with such an output ("the output of blocks.0.mlp").
    """

    def finite(array: Array) -> bool:
        return bool(current().read(xp.isfinite(array).all(), 1.0))

    def checked(path: str, forward: Any) -> Any:
        def run(*args: Any, **kwargs: Any) -> Any:
            out = forward(*args, **kwargs)
            if isinstance(out, Tensor) and not finite(out.data):
                places.append(f"the output of {path or 'the model'}")
            return out

        return run

    places = [f"the parameter {path}" for path, p in model.named_parameters() if not finite(p.data)]
    replaced: list[tuple[dict[str, Any], Any]] = []

    def restore() -> None:
        for attributes, own in reversed(replaced):
            attributes.pop("forward", None) if own is None else attributes.update(forward=own)

    with restoring(restore):
        for path, module in list(model.named_modules()):
            replaced.append((vars(module), vars(module).get("forward")))
            vars(module)["forward"] = checked(path, module.forward)
        with no_grad(), evaluating(model):
            quietly(model, *inputs)
    return places[0] if places else ""
