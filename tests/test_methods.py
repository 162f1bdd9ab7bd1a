"""The methods of the paper: what each trains, counts, saves, and gives back (minilora.methods)."""

from contextlib import nullcontext
from dataclasses import fields

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import (
    bits,
    dtypes,
    gpt2,
    ids,
    logits,
    normal,
    same_bytes,
    seeds,
    shake,
    snapshot,
    train,
    unfelt,
    wide,
)
from test_transaction import interrupted, lines_of

import minilora as ml
from minilora import accounting, lora, methods
from minilora.files import checkpoint
from minilora.methods.bottleneck import Bottleneck
from minilora.models.families import SHAPES
from minilora.tensor import Tensor

every = pytest.mark.parametrize("called", list(methods.METHODS))
PREFIXES = ["preembed", "prelayer", "lora+preembed", "lora+prelayer"]
few = settings(max_examples=5)
IDS = ids(tokens=6)


def make(called: str, seed: int = 0, r: int = 2, lp: int = 2, li: int = 0, **more):
    """A method with settings of its own."""
    cls = methods.METHODS[called]
    given = {"r": r, "alpha": 5.0, "lp": lp, "li": li, **more}
    return cls(**{f.name: given[f.name] for f in fields(cls) if f.name in given})


def applied(called: str, seed: int = 0, dtype: str = "float64", model=None, **how):
    """A model with a method, all trained numbers moved away from 0."""
    model = model or gpt2(seed, dtype)
    make(called, **how).apply(model, rng=seed + 1)
    shake(model.trainable_parameters().values(), seed + 2, 0.3)
    return model


def prompt_of(li: int, tokens):
    return methods.prompt(tokens) if li else nullcontext()


def size_of(parameters) -> int:
    return sum(p.data.size for p in parameters)


def test_the_paper_s_methods_are_there():
    assert {
        "full", "fttop2", "bitfit", "adapter-h", "adapter-l", "adapter-p", "adapter-d",
        "preembed", "prelayer", "lora", "lora+preembed", "lora+prelayer",
    } <= set(methods.METHODS)


# What is trained, and what is not.


@every
@few
@given(st.data())
def test_what_is_trained_is_counted_by_the_formula(called, data):
    draw = data.draw
    heads = draw(st.integers(1, 2))
    sizes = {
        "d_model": heads * draw(st.integers(1, 5)), "n_heads": heads,
        "n_layers": draw(st.integers(1, 4)), "d_ff": draw(st.sampled_from([0, 3, 7])),
        "vocab_size": draw(st.integers(2, 9)), "n_positions": draw(st.integers(6, 9)),
    }
    r, lp, li = draw(st.integers(1, 3)), draw(st.integers(1, 3)), draw(st.integers(0, 2))
    targets = draw(st.sampled_from([("q", "v"), ("k",), ("q", "k", "v", "o"), ("up", "down", "o")]))
    layers = draw(st.lists(st.integers(0, sizes["n_layers"] - 1), min_size=1, unique=True))
    layers = draw(st.sampled_from([None, tuple(layers)]))
    method = make(called, r=r, lp=lp, li=li, targets=targets, layers=layers)
    model = ml.GPT2(ml.GPT2Config(**sizes), rng=0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)  # of ranks above the layer's
        names = method.apply(model, rng=0)
    trained = model.trainable_parameters()
    assert (
        method.count(model.config) == size_of(trained.values()) == accounting.count(model).trainable
    )
    assert len(names) == len(trained)
    assert {id(p) for p in methods.trained_by(model, "default").values()} == {
        id(p) for p in trained.values()
    }


PAPER = [  # counts that the paper's tables print, in models of its sizes
    ("adapter-l", {"r": 6}, "gpt2-medium", 368_784),
    ("adapter-h", {"r": 112}, "gpt2-medium", 11_064_576),
    ("fttop2", {}, "gpt2-medium", 25_192_448), ("full", {}, "gpt2-large", 774_030_080),
    ("lora", {"r": 4}, "gpt2-medium", 393_216), ("prelayer", {"lp": 14}, "gpt2-medium", 344_064),
    ("preembed", {"lp": 256, "li": 8}, "gpt3-175b", 3_244_032),
]


@pytest.mark.parametrize("called, settings, shape, count", PAPER)
def test_the_formulas_give_the_paper_s_counts(numpy_only, called, settings, shape, count):
    assert make(called, **settings).count(SHAPES[shape]) == count


@every
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_training_writes_no_byte_of_the_base_and_remove_gives_it_back(called, dtype):
    model = gpt2(0, dtype)
    model.blocks[1].requires_grad_(False)  # flags that have to come back
    before, own = snapshot(model), vars(model).copy()
    base = [(p, p.data, p.data.tobytes()) for p in model.parameters()]
    make(called, r=8).apply(model, rng=1)  # so many that not all of a relu's are 0
    start, trained = bits(model), set(model.trainable_parameters())
    assert {p.dtype for p in model.trainable_parameters().values()} == {np.dtype(dtype)}
    train(model, steps=2, weight_decay=0.1)
    changed = {name for name, b in bits(model).items() if b != start[name]}
    assert trained - unfelt(trained) <= changed <= trained
    assert all(p.data is data and data.tobytes() == b for p, data, b in base)
    assert methods.remove(model) is model
    assert snapshot(model) == before and vars(model) == own
    assert all(type(m).__module__.startswith("minilora.") and "adapters" not in type(m).__module__
               for _, m in model.named_modules())


@every
def test_every_trained_number_gets_a_gradient_and_no_other(called):
    model = applied(called, r=8)
    ml.ops.cross_entropy(model(IDS), IDS).backward()
    got = {name for name, p in model.named_parameters() if p.grad is not None}
    assert got == set(model.trainable_parameters())


@every
@given(seeds, dtypes)
@few
def test_at_first_it_is_the_base_but_for_trained_tokens(called, seed, dtype):
    model = gpt2(seed, dtype)
    before = logits(model, IDS)
    make(called).apply(model, rng=seed)
    assert same_bytes(logits(model, IDS), before) == (called not in PREFIXES)
    with methods.disabled(model):
        assert same_bytes(logits(model, IDS), before)
    assert same_bytes(logits(model, IDS), before) == (called not in PREFIXES)
    shake(model.trainable_parameters().values(), seed, 0.3)
    assert not same_bytes(logits(model, IDS), before)


@every
def test_in_half_precision_it_is_trained_in_float32(called):
    model = applied(called, dtype="float16")
    assert {str(p.dtype) for p in model.trainable_parameters().values()} == {"float32"}
    out = model(IDS)
    assert str(out.dtype) == "float16"
    ml.ops.cross_entropy(out, IDS).backward()
    assert all(str(p.grad.dtype) == "float32" for p in model.trainable_parameters().values())


@every
def test_the_seed_decides_and_new_parts_are_in_the_model_s_mode(called):
    def start(seed):
        model = gpt2(0).eval()
        make(called).apply(model, rng=seed)
        assert not any(m.training for _, m in model.named_modules())
        return b"".join(ml.asnumpy(p).tobytes() for p in model.trainable_parameters().values())

    drawn = called not in ("full", "fttop2", "bitfit", "pissa")
    assert start(1) == start(np.random.default_rng(1)) and (start(1) != start(2)) == drawn


@every
def test_the_loss_falls(numpy_only, called):
    model = gpt2(0, "float32", vocab_size=30)
    text = np.array([list(b"to be or not to be that is t")]) % 29
    make(called).apply(model, rng=0)
    optimizer, losses = ml.AdamW(model.trainable_parameters(), lr=0.03), []
    for _ in range(12):
        optimizer.zero_grad()
        loss = ml.ops.cross_entropy(model(text[:, :9]), text[:, 1:10])
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.02


# What an adapter computes, and a trained token.


@given(seeds, st.booleans())
@few
def test_an_adapter_is_its_formula_and_so_is_its_gradient(seed, norm):
    part = Bottleneck(4, 3, norm, np.random.default_rng(seed), "float64")
    assert not wide(part.up.W).any() and not wide(part.up.b).any() and wide(part.down.W).all()
    shake(part.parameters(), seed, 0.5)
    h = normal(seed, 2, 5, 4)
    D, b, U, c = map(wide, (part.down.W, part.down.b, part.up.W, part.up.b))
    z = h
    if norm:
        z = (h - h.mean(-1, keepdims=True)) / np.sqrt(h.var(-1, keepdims=True) + 1e-5)
        z = z * wide(part.ln.g) + wide(part.ln.b)
    wanted = h + np.maximum(z @ D.T + b, 0) @ U.T + c
    np.testing.assert_allclose(
        ml.asnumpy(part(lambda x: x, Tensor(h))), wanted, rtol=1e-12, atol=1e-12
    )

    def f(x, D, U):
        part.down.W, part.up.W = D, U
        return part(lambda x: x * x, x)

    assert ml.gradcheck(f, h, D, U) < 1e-6


@pytest.mark.parametrize(
    "called, where",
    [
        ("adapter-h", ["0.attn", "0.mlp", "1.attn", "1.mlp"]),
        ("adapter-l", ["0.mlp", "1.mlp"]),
        ("adapter-p", ["0.mlp", "1.mlp"]),
        ("adapter-d", ["1.mlp"]),
        ("prelayer", ["1", "drop"]),
        ("lora+prelayer", ["0.attn.q", "0.attn.v", "1", "1.attn.q", "1.attn.v", "drop"]),
        ("lora+preembed", ["0.attn.q", "0.attn.v", "1.attn.q", "1.attn.v", "embed"]),
    ],
)
def test_adapters_are_where_the_paper_has_them(called, where):
    model = applied(called)
    names = list(model.trainable_parameters())
    found = sorted({name.removeprefix("blocks.").split(".default.")[0] for name in names})
    assert [path.replace(".base", "") for path in found] == where


def test_adapter_d_is_in_the_chosen_blocks():
    method = methods.AdapterD(r=1, layers=[2, 0, 2])
    model = gpt2(n_layers=4)
    names = method.apply(model, rng=0)
    assert method.layers == (0, 2) and method.count(model.config) == 2 * (2 * 8 + 1 + 8)
    assert [n for n in names if n.endswith("up.W")] == ["blocks.0.mlp.up.W", "blocks.2.mlp.up.W"]


def test_adapters_inside_adapters_come_off():
    class Nested(methods.AdapterH, called=""):
        def around(self, model, rng):
            return super().around(model, rng) | {"blocks.1": Bottleneck(8, 2, False, rng, "f8")}

    model = gpt2(0)
    before = snapshot(model)
    assert len(methods.apply(model, Nested(r=2), rng=0)) == 5 * 4
    methods.remove(model)
    assert snapshot(model) == before


def test_adapters_stand_before_the_skip_connection():
    """Block 1 by hand: x + adapter(attn(ln1(x))), then the same with the MLP."""
    model = applied("adapter-h", model=gpt2(0, n_layers=1))
    block, x = model.blocks[0], Tensor(normal(1, 2, 3, 8))
    inside = block.attn.adapters["default"], block.mlp.adapters["default"]
    y = x + inside[0](lambda z: z, block.attn.base(block.ln1(x)))
    y = y + inside[1](lambda z: z, block.mlp.base(block.ln2(y)))
    np.testing.assert_allclose(ml.asnumpy(block(x)), ml.asnumpy(y), rtol=1e-12, atol=1e-13)


def by_hand(model, rows, ends, E, layer=None):
    """The logits for the given tokens, from the plain model, one row after the other."""
    lp = 2
    with methods.disabled(model):
        tok, pos = (
            wide(model.tok.base.W if hasattr(model.tok, "base") else model.tok.W),
            wide(model.pos.W),
        )
        blocks = [block.base if hasattr(block, "base") else block for block in model.blocks]
        out = []
        for row, end in zip(rows, ends):
            order = ["E"] * lp + list(row[:end]) + ["E"] * (len(E[0]) - lp) + list(row[end:])
            ours = [i for i, what in enumerate(order) if what == "E"]
            x = np.array([tok[0] if what == "E" else tok[what] for what in order])
            if layer is None:
                x[ours] = E[0]
            x = x + pos[: len(x)]
            for i, block in enumerate(blocks):
                if layer is not None:
                    x[ours] = E[i]
                x = ml.asnumpy(block(Tensor(x[None])))[0].copy()
            x = ml.asnumpy(model.ln_f(Tensor(x[None])))[0]
            at = [i for i, what in enumerate(order) if what != "E"]
            if end:
                at[end - 1] += len(E[0]) - lp
            out.append(x[at] @ tok.T)
    return np.array(out)


@pytest.mark.parametrize("called", ["preembed", "prelayer"])
@given(seeds, st.integers(0, 2), st.lists(st.integers(0, 5), min_size=3, max_size=3))
@few
def test_trained_tokens_are_where_they_should_be(called, seed, li, ends):
    model, rows = applied(called, seed, li=li), ids(seed, 3, 5)
    E = [wide(p) for _, p in sorted(methods.trained_by(model, "default").items())]
    E = E[-1:] + E[:-1]  # what the first block gets comes last, as `drop`
    with prompt_of(li, ends):
        got = logits(model, rows)
    wanted = by_hand(model, rows, ends if li else [5] * 3, E, layer=called == "prelayer" or None)
    np.testing.assert_allclose(got, wanted, rtol=1e-9, atol=1e-9)
    if li and len(set(ends)) > 1:
        with methods.prompt(ends[0]):
            assert not np.allclose(logits(model, rows), wanted)


@pytest.mark.parametrize("called", PREFIXES)
def test_errors_of_trained_tokens_name_the_bound(called):
    model = applied(called, li=1)
    says = {
        "give its length": (nullcontext(), IDS),
        "7 to 7 tokens in rows of 6": (methods.prompt(7), IDS),
        "one for each of the 2 rows": (methods.prompt([1, 2, 3]), IDS),
        "one integer": (methods.prompt(1.5), IDS),
        "12: give it 9 tokens at most": (methods.prompt(3), ids(tokens=10)),
        "is out of range: the table has rows 0 to 10": (methods.prompt(3), IDS + 11),
        r"\(batch, tokens\)": (methods.prompt(3), IDS[0]),
    }
    for words, (context, x) in says.items():
        with context, pytest.raises(ValueError, match=words):
            model(x)
    with methods.prompt(6):
        assert model(ids(tokens=9)).shape == (2, 9, 11)
        with pytest.raises(ValueError, match="n_positions, 12, and the prompt has to stay"):
            ml.generate(model, IDS, 5)
        assert ml.generate(model, IDS, 4).shape == (2, 10)


# With a cache, recomputed, without kernels, on shapes.


@every
@pytest.mark.parametrize("li", [0, 2])
@pytest.mark.usefixtures("numpy_first")
def test_generating_is_the_same_with_a_cache(called, li):
    """Also beyond the window, where generation continues with the latter half."""
    model = applied(called, li=li)
    with prompt_of(li, [6, 4]):
        how = {"temperature": 0.0 if li else 1.0, "rng": 3}
        n = 3 if li else 12
        assert (
            ml.generate(model, IDS, n, **how) == ml.generate(model, IDS, n, cache=False, **how)
        ).all()
        cache, full = model.new_cache(2), ids(5, tokens=8)
        with ml.no_grad():
            parts = [
                ml.asnumpy(model(full[:, a:b], cache=cache)) for a, b in ((0, 6), (6, 7), (7, 8))
            ]
        np.testing.assert_allclose(
            np.concatenate(parts, 1), logits(model, full), rtol=1e-9, atol=1e-9
        )


@every
@pytest.mark.parametrize("li", [0, 1])
def test_recomputed_blocks_give_the_same_gradients(called, li):
    grads = []
    for again in (False, True):
        model = applied(called, li=li, r=2)
        model.recompute = again
        with prompt_of(li, [2, 3]):
            loss = ml.ops.cross_entropy(model(IDS), IDS)
        loss.backward()  # outside the block: the prompt's length is remembered
        grads.append([ml.asnumpy(p.grad) for p in model.trainable_parameters().values()])
    assert all(map(same_bytes, *grads))


@every
def test_kernels_and_plain_ops_agree(called):
    seen = []
    for plain in (False, True):
        model = applied(called)
        with ml.plain(plain):
            loss = ml.ops.cross_entropy(model(IDS), IDS)
            loss.backward()
        grads = [wide(p.grad) for p in model.trainable_parameters().values()]
        seen.append([wide(loss.data), *grads])
    for kernel, op in zip(*seen):
        np.testing.assert_allclose(kernel, op, rtol=1e-9, atol=1e-12)


@every
def test_shapes_plan_a_step(numpy_only, called):
    seen = []
    for where in ("numpy", "shapes:numpy"):
        with ml.using(where) as library:
            model = ml.GPT2(ml.GPT2Config(11, 12, 8, 2, 2), rng=0)
            make(called).apply(model, rng=0)
            optimizer = ml.AdamW(model.trainable_parameters(), lr=0.0)
            pairs = np.random.default_rng(0).integers(0, 11, (2, 2, 8))
            if where == "numpy":
                seen += [accounting.step.live(model, optimizer, pairs).rows]
                seen += [accounting.step.on_shapes(model, optimizer, pairs).rows]
            else:
                seen += [accounting.step.observe(model, optimizer, pairs, library.meter()).rows]
    assert seen[0]["trained weights"] == 4 * make(called).count(ml.GPT2Config(11, 12, 8, 2, 2))
    for row in ("frozen weights", "trained weights", "gradients", "Adam moments"):
        assert len({s[row] for s in seen}) == 1, row


# Files.


@every
def test_a_file_holds_what_is_trained_and_nothing_else(numpy_only, tmp_path, called):
    model = applied(called)
    outputs, trained = logits(model, IDS), methods.trained_by(model, "default")
    methods.save(model, tmp_path / "m.npz")
    arrays, _ = checkpoint.read(tmp_path / "m.npz")
    assert arrays.keys() == trained.keys()
    other = gpt2(0)
    methods.load(other, tmp_path / "m.npz", name="poet")
    assert not other.trainable_parameters()
    if called == "pissa":  # saved as a LoRA of twice the rank
        assert other.adapters.configs["poet"] == methods.LoRA(r=4, alpha=10.0)
        np.testing.assert_allclose(logits(other, IDS), outputs, rtol=1e-11, atol=1e-12)
        return
    assert same_bytes(logits(other, IDS), outputs)
    assert all(same_bytes(a, ml.asnumpy(trained[name].data)) for name, a in arrays.items())
    assert other.adapters.configs["poet"] == model.adapters.configs["default"]
    methods.remove(other)
    methods.load(other, tmp_path / "m.npz", trainable=True)
    assert list(other.trainable_parameters()) == list(model.trainable_parameters())


@every
def test_a_file_that_does_not_fit_changes_nothing(numpy_only, tmp_path, called):
    model = applied(called)
    path = methods.save(model, tmp_path / "m.npz")
    arrays, meta = checkpoint.read(path)
    first = next(iter(arrays))
    other, small = gpt2(0), gpt2(0, d_model=4)
    before = snapshot(other)

    def refused(words, arrays=arrays, meta=meta, to=other):
        checkpoint.write(path, arrays, meta)
        with pytest.raises(ValueError, match=words) as caught:
            methods.load(to, path)
        assert str(caught.value).startswith(str(path))

    renamed = {"odd" if name == first else name: a for name, a in arrays.items()}
    refused(f"missing .*{first}.*unexpected .*'odd'", renamed)
    refused("unexpected .*stray", {**arrays, "stray": np.zeros(2)})
    refused(f"{first} is", {**arrays, first: arrays[first].reshape(1, 1, -1)})
    refused("holds a model, not an adapter: ml.load_model reads it", meta={**meta, "kind": "model"})
    refused("unknown method 'x'", meta={**meta, "method": "x"})
    refused("unknown argument 'x'", meta={**meta, "settings": {"x": 1}})
    refused("does not fit|more numbers", to=small)
    assert snapshot(other) == before and "adapters" not in vars(other)


def test_a_file_for_another_base_warns(numpy_only, tmp_path):
    path = methods.save(applied("bitfit"), tmp_path / "m.npz")
    with pytest.warns(UserWarning, match="another base"):
        methods.load(gpt2(1), path)


# Several at once.


@pytest.mark.parametrize("one", ["adapter-h", "lora", "bitfit", "prelayer", "lora+preembed"])
@pytest.mark.parametrize("two", ["adapter-h", "lora", "fttop2", "adapter-l"])
def test_two_methods_have_one_base(numpy_only, one, two):
    model = gpt2(0)
    before = snapshot(model)
    outputs = {"": logits(model, IDS)}
    for name, called in (("one", one), ("two", two)):
        make(called).apply(model, name, rng=0)
        trained = methods.trained_by(model, name).values()
        assert {id(p) for p in model.trainable_parameters().values()} == {id(p) for p in trained}
        shake(trained, len(outputs), 0.3)
        outputs[name] = logits(model, IDS)
    for name in ("one", "two", ""):
        methods.activate(model, *[name] if name else [])
        assert same_bytes(logits(model, IDS), outputs[name]), name
    if {one, two} != {"bitfit", "fttop2"}:
        methods.activate(model, "one", "two")
        assert not any(same_bytes(logits(model, IDS), x) for x in outputs.values())
    else:
        with pytest.raises(ValueError, match="each train a copy of"):
            methods.activate(model, "one", "two")
    with pytest.raises(ValueError, match="'two' cannot be an adapter's name"):
        methods.apply(model, "full", "two")
    with pytest.raises(ValueError, match=r"which one\? Attached are \['one', 'two'\]"):
        methods.save(model, "never.npz")
    methods.activate(model, "one")
    methods.remove(model, "two")
    assert [*model.adapters.configs] == ["one"] and "two" not in model.adapters.copies
    assert same_bytes(logits(model, IDS), outputs["one"])
    methods.remove(model, "one")
    assert snapshot(model) == before


@pytest.mark.parametrize("called", ["adapter-h", "lora", "bitfit"])
def test_an_adapter_of_either_door_is_in_the_one_registry(called):
    model = gpt2(0)
    lora.attach(model, ml.LoRAConfig(r=2, targets=("k",)), "bare", rng=0)
    shake(model.trainable_parameters().values(), 1)
    outputs = logits(model, IDS)
    make(called).apply(model, rng=0)
    assert [*model.adapters.configs] == ["bare", "default"]
    lora.activate(model, "bare", "default")
    assert same_bytes(logits(model, IDS), outputs)  # the new one starts at 0
    with methods.disabled(model):
        assert same_bytes(logits(model, IDS), logits(gpt2(0), IDS))
    lora.detach(model, "default")
    assert same_bytes(logits(model, IDS), outputs)


def test_two_prompts_cannot_be_active_together():
    model = applied("preembed")
    methods.apply(model, "prelayer", "two", rng=0)
    says = "default and two cannot be active together: each puts trained tokens"
    with pytest.raises(ValueError, match=says):
        methods.activate(model, "default", "two")


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda m: methods.apply(m, "adaptor"), "unknown method 'adaptor': choose"),
        (lambda m: methods.apply(m, "lora", "a.b"), "'a.b' cannot be an adapter's name"),
        (lambda m: methods.apply(m, "base", "base"), "unknown method 'base': choose"),
        (lambda m: methods.apply(m, "full", "base"), "'base' cannot be an adapter's name"),
        (lambda m: methods.apply(m, "adapter-h", r=0), "AdapterH: r must be an integer >= 1"),
        (lambda m: methods.apply(m, "adapter-h", rank=2), "rank is called r here"),
        (lambda m: methods.apply(m, "adapter-d", layers=(2,)), "unknown block 2: choose .* 0 to 1"),
        (lambda m: methods.apply(m, "adapter-d", layers=()), "layers is empty"),
        (lambda m: methods.apply(m, "adapter-d", layers="0"), "layers must be integers"),
        (lambda m: methods.apply(m, "preembed", lp=0), "lp \\+ li must be 1 at least"),
        (lambda m: methods.apply(m, "prelayer", lp=8, li=4),
         "lp \\+ li = 12 leaves no place for a prompt: n_positions is 12: take fewer"),
        (lambda m: methods.apply(m, "lora+preembed", lp=-1), "PreEmbed: lp must be"),
        (lambda m: methods.apply(m, "lora+preembed", targets="x"), "no layer matches 'x'"),
        (lambda m: methods.apply(m, 3), "give a method.s name"),
        (lambda m: methods.apply(m, methods.Full(), r=3), "give a method.s name"),
        (lambda m: methods.activate(m), "this model has no adapter: attach one first"),
        (lambda m: methods.remove(m), "this model has no adapter: attach one first"),
        (lambda m: methods.LoRA(targets="tok").count(m.config), "the formula is for targets among"),
    ],
)
def test_what_is_refused_changes_nothing(numpy_only, call, says):
    model = gpt2()
    before = snapshot(model)
    with pytest.raises((ValueError, TypeError), match=says):
        call(model)
    assert (
        snapshot(model) == before and "adapters" not in vars(model)
    )


@every
def test_lora_s_own_functions_know_a_method_s_lora(called):
    model = applied(called)
    if not isinstance(make(called), methods.LoRA):
        return
    outputs = logits(model, IDS)
    with lora.merged(model):
        np.testing.assert_allclose(logits(model, IDS), outputs, rtol=1e-11, atol=1e-12)
    assert same_bytes(logits(model, IDS), outputs)


# All or nothing.


def applied_twice(seed: int = 0):
    """Adapters, which count; LoRA with tokens; biases; and "bare", by `lora.attach`."""
    model = gpt2(seed, "float32")
    lora.attach(model, ml.LoRAConfig(r=2), "bare", rng=seed)
    for name, called in (
        ("two", "lora+preembed"), ("one", "adapter-h"), ("three", "bitfit"), ("four", "rslora"),
    ):
        make(called).apply(model, name, rng=seed)
        shake(model.trainable_parameters().values(), seed)
    methods.activate(model, "one")
    return model


CALLS = {
    "apply": lambda m, path: methods.apply(m, "lora+prelayer", "new", rng=1),
    "apply dora": lambda m, path: methods.apply(m, "dora", "new", rng=1),
    "apply full": lambda m, path: methods.apply(m, "fttop2", "new", rng=1),
    "activate": lambda m, path: methods.activate(m, "two", "three"),
    "remove one": lambda m, path: methods.remove(m, "two"),
    "remove": lambda m, path: methods.remove(m),
    "combine": lambda m, path: lora.combine(m, {"bare": 1, "four": -0.5}, "svd"),
    "load": lambda m, path: methods.load(m, path, "new"),
}


@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=6)
@given(st.floats(0, 0.999))
def test_an_interrupt_at_any_line_changes_nothing(numpy_only, tmp_path_factory, name, where):
    path = tmp_path_factory.getbasetemp() / "interrupted.npz"
    if not path.exists():
        methods.save(applied("prelayer", dtype="float32"), path)
    model = applied_twice()
    lines = lines_of(lambda: CALLS[name](model, path))
    done, model = snapshot(model)[0], applied_twice()
    before = snapshot(model)
    assert interrupted(lambda: CALLS[name](model, path), 1 + int(where * lines))
    assert snapshot(model) == before or snapshot(model)[0] == done


@pytest.mark.parametrize("call", [methods.apply, methods.activate, methods.remove, lora.combine])
def test_the_model_is_the_first_argument(numpy_only, call):
    with pytest.raises(TypeError, match=r"the model comes first, and not str"):
        call("lora", "default")


@pytest.mark.parametrize("top", [(0, 1), (1, 2), (2, 3), (9, 10)])
def test_fttop2_is_the_last_two_blocks(top):
    model = gpt2(n_layers=top[1] + 1)
    names = methods.apply(model, "fttop2")
    assert {name.split(".")[1] for name in names} == {str(i) for i in top}
