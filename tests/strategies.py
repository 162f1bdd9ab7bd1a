"""What the tests draw from: shapes, arrays, small models, and adapters that are not zero."""

from __future__ import annotations

import json
import re
from contextlib import contextmanager

import numpy as np
import pytest
from hypothesis import strategies as st

import minilora as ml
from minilora import lora
from minilora.adapters.places import adapted as adapted_modules
from minilora.adapters.places import bare, walk
from minilora.adapters.registry import Adapters
from minilora.backend import threads
from minilora.files import safetensors
from minilora.models.families import FAMILIES as MODELS
from minilora.models.families import build
from minilora.nn import Embedding, Parameter, generators

sizes = st.integers(1, 5)
seeds = st.integers(0, 2**32 - 1)
dtypes = st.sampled_from(["float32", "float64"])


def normal(seed: int, *shape: int, dtype: str = "float64") -> np.ndarray:
    """Gaussian numbers on the host."""
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


FAMILIES = {  # as small as can be; more than that of each is said where it is wanted
    "gpt2": {},
    "bert": {},
    "roberta": {},
    "deberta": {"position_buckets": 6, "position_biased_input": True},
    "llama": {"n_kv_heads": 1, "rope_theta": 100.0, "d_ff": 12, "qkv_bias": True},
}
family = pytest.mark.parametrize("family", FAMILIES)
families = st.sampled_from(sorted(FAMILIES))
DEBERTAS = [  # every setting of DeBERTa's own, each way
    {"position_biased_input": False},
    {"position_biased_input": True, "n_types": 2, "norm_rel_ebd": False},
    {"share_att_key": False, "conv_kernel_size": 0, "conv_act": "tanh"},
    {"share_att_key": False, "pos_att_type": ("c2p",), "conv_kernel_size": 5, "conv_act": "tanh"},
    {"pos_att_type": ("p2c",), "position_buckets": 0, "max_relative_positions": 4},
    {"share_att_key": False, "pos_att_type": ("p2c",), "position_buckets": 7},
    {"pos_att_type": (), "position_biased_input": True, "conv_kernel_size": 0,
     "norm_rel_ebd": False},
    {"position_buckets": 4, "max_relative_positions": 8, "n_layers": 1},
]


def made(family: str, seed: int = 0, dtype: str = "float64", **sizes):
    """A tiny model whose every parameter is random: no bias is 0 and no gain is 1."""
    config = {"vocab_size": 11, "n_positions": 12, "d_model": 8, "n_layers": 2, "n_heads": 2}
    kind, _ = MODELS[family]
    model = build(kind(**config | FAMILIES[family] | sizes), rng=seed, dtype=dtype)
    shake(model.parameters(), seed, 0.2)
    return model


def gpt2(seed: int = 0, dtype: str = "float64", **sizes: float) -> ml.GPT2:
    return made("gpt2", seed, dtype, **sizes)


def seen(model, seed: int = 0, padded: bool = True, batch: int = 3, tokens: int = 12):
    """(ids, mask) for an encoder: rows of unlike lengths, and no real token is the padding's id."""
    rng, pad = np.random.default_rng(seed), getattr(model.config, "padding_id", 1)
    at = rng.integers(0, model.config.vocab_size - 1, (batch, tokens))
    at += at >= pad
    if not padded:
        return at, None
    lengths = np.append(rng.integers(2, tokens, batch - 1), tokens)
    mask = np.arange(tokens) < lengths[:, None]
    return np.where(mask, at, pad), mask


def unfelt(names) -> set[str]:
    """Those of these parameters whose gradient is rounding or 0, as a BLAS kernel has it: a softmax
    does not feel what all keys have in common."""
    return {name for name in names if re.search(r"attn\.k\.(.+\.)?b$", name)}


def shake(parameters, seed: int, size: float = 0.1) -> None:
    """Add Gaussian noise: an adapter whose B is 0 would prove nothing."""
    rng = np.random.default_rng(seed)
    for p in parameters:
        noise = (rng.standard_normal(p.shape) * size).astype(np.dtype(str(p.dtype)))
        p.data += ml.backend.asarray(noise)


def fits(family: str, targets):
    """These targets; in a Llama, which has no table of positions, "gate" in place of "pos"."""
    names = (targets,) if isinstance(targets, str) else tuple(targets)
    return tuple("gate" if (family, name) == ("llama", "pos") else name for name in names)


def lora_of(
    family: str, seed: int = 0, dtype: str = "float64", r: int = 3, alpha: float = 5.0, **config
):
    """(model, paths): one of this family with an adapter of B ≠ 0 and alpha ≠ r."""
    model = made(family, seed, dtype, **config.pop("sizes", {}))
    config["targets"] = fits(family, config.get("targets", ("q", "v")))
    paths = lora.attach(model, ml.LoRAConfig(r=r, alpha=alpha, **config), rng=seed + 1)
    shake(model.trainable_parameters().values(), seed + 2)
    return model, paths


def adapted(*how, **config):
    """A GPT-2 so."""
    return lora_of("gpt2", *how, **config)


def ids(seed: int = 0, batch: int = 2, tokens: int = 7, vocabulary: int = 11) -> np.ndarray:
    """Token ids on the host, (batch, tokens)."""
    return np.random.default_rng(seed).integers(0, vocabulary, (batch, tokens))


def leaves(*arrays: np.ndarray) -> list[ml.Tensor]:
    """Tensors that want a gradient, from arrays on the host."""
    return [ml.Tensor(a, requires_grad=True) for a in arrays]


def shard(folder, files: int) -> None:
    """Split the only file of tensors in a folder into several, with an index."""
    whole = folder / "model.safetensors"
    with safetensors.opened(whole) as file:
        arrays = {name: file.array(name) for name in file.tensors}
    names = {n: f"model-{i % files + 1:05}-of-{files:05}.safetensors"
             for i, n in enumerate(arrays)}
    for name in {*names.values()}:
        safetensors.write(folder / name, {n: arrays[n] for n in arrays if names[n] == name})
    index = {"metadata": {"total_size": 0}, "weight_map": names}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    whole.unlink()


def same_bytes(a: np.ndarray, b: np.ndarray) -> bool:
    """Equal in dtype, shape and every bit."""
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def value_and_grads(f, *arrays: np.ndarray, seed: int = 1, weigh=lambda w: w):
    """(f's value, its gradient for each array), on the host; the output is weighed with noise."""
    tensors = leaves(*arrays)
    out = f(*tensors)
    weights = weigh(normal(seed, *out.shape, dtype=str(out.dtype)))
    (out * ml.backend.asarray(weights)).sum().backward()
    return ml.asnumpy(out), [ml.asnumpy(t.grad) for t in tensors]


@contextmanager
def in_pieces(piece: int = 64, queries: int = 64, among: int = 3):
    """Inside, work of any size is cut (numbers a piece, queries a block) and shared by threads."""
    before, backend = ml.threads(among), ml.current()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in {"piece": piece, "queries": queries}.items():
            patch.setattr(backend, name, value)
        patch.setattr(threads, "WORTH", 0)
        patch.setattr(threads, "EACH", 8)
        try:
            yield
        finally:
            ml.threads(before)


def roundings(steps: float, size, dtype) -> np.ndarray:
    """How far two results may lie apart, each after `steps` roundings of numbers up to `size`."""
    return 2 * steps * np.finfo(str(dtype)).eps * np.asarray(size, np.float64)


def assert_near(got: np.ndarray, wanted: np.ndarray, allowed) -> None:
    """|got - wanted| <= allowed everywhere, in the same dtype and shape."""
    assert (got.dtype, got.shape) == (wanted.dtype, wanted.shape)
    error = np.abs(got.astype(np.float64) - wanted.astype(np.float64))
    assert np.all(error <= allowed), f"error {error.max():.3g}, allowed {np.min(allowed):.3g}"


def bits(model) -> dict[str, tuple]:
    """Every parameter by name, in order: dtype, shape and bytes; two are equal or they are not."""
    held = {name: ml.asnumpy(p.data) for name, p in model.named_parameters()}
    return {name: (str(a.dtype), a.shape, a.tobytes()) for name, a in held.items()}


def logits(model, inputs: np.ndarray) -> np.ndarray:
    """What the model says, on the host, without a tape."""
    with ml.no_grad():
        return np.array(ml.asnumpy(model(inputs).data))


def train(model, steps: int = 3, make=ml.AdamW, **how) -> None:
    """A few steps on random ids."""
    optimizer = make(model.trainable_parameters(), **{"lr": 0.05, **how})
    for step in range(steps):
        x = ids(step, tokens=8)
        optimizer.zero_grad()
        ml.ops.cross_entropy(model(x[:, :-1]), x[:, 1:]).backward()
        optimizer.step()
    optimizer.zero_grad()


def snapshot(model):
    """All that a call which fails has to leave alone."""
    state = registry_of(model)
    return (
        bits(model),
        list(model.named_modules()),
        [(name, p, p.requires_grad) for name, p in model.named_parameters()],
        [(at, list(m.adapters.items()), m.active) for at, m in model.named_modules()
         if isinstance(m, lora.Adapted)],
        state and (state.active, dict(state.configs), dict(state.base), dict(state.flags)),
        state and {name: dict(copies) for name, copies in state.copies.items()},
        model.locked,
        partition(model),
    )


def registry_of(model):
    """The model's registry, locked or not; None: it has none."""
    return next((held for held in vars(model).values() if isinstance(held, Adapters)), None)


def partition(model) -> list[list[str]]:
    """The names of all parameters and modules of the base, those of one object together."""
    groups: dict[int, list[str]] = {}
    for path, module in walk(model):
        groups.setdefault(id(bare(module)), []).append(f"{path}.")
        for letter, child in bare(module).children():
            if isinstance(child, Parameter):
                groups.setdefault(id(child), []).append(f"{path}.{letter}")
    return sorted(groups.values())


def everything(model, optimizer) -> tuple:
    """Every byte, flag, name and generator that a call which fails has to leave as it was."""
    state = registry_of(model)
    copies = state and state.copies
    return (
        snapshot(model),
        [(name, m.training) for name, m in model.named_modules()],
        [(name, None if p.grad is None else p.grad.tobytes())
         for name, p in model.named_parameters()],
        {name: repr(g.bit_generator.state) for name, g in generators(model).items()},
        [(p.requires_grad, ml.asnumpy(p.data).tobytes())
         for each in (copies or {}).values() for p in each.values()],
        optimizer.t, {n: a.tobytes() for n, a in optimizer.state_dict().items()},
    )


def layers(model) -> dict[str, lora.Adapted]:
    """The adapted modules, by their paths in the base model."""
    return adapted_modules(model)


def in_use(layer) -> list:
    """The active adapters of an adapted module."""
    return [layer.adapters[name] for name in layer.active]


def wide(x) -> np.ndarray:
    """On the host, in float64."""
    return ml.asnumpy(x).astype(np.float64)


def delta(layer, *names: str) -> np.ndarray:
    """Σ alpha / r · B A by the formula, on the host, in W's orientation."""
    held = [layer.adapters[name] for name in names or layer.active]
    total = sum(a.alpha / a.r * (wide(a.B) @ wide(a.A)) for a in held)
    return total.T if isinstance(layer.base, Embedding) else total
