"""The registry of adapters: its functions in any order, on any model (minilora.adapters)."""

import bisect
import contextlib
import copy
import itertools
from pathlib import Path

import numpy as np
import pytest
from conftest import THOROUGH
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from strategies import (
    DEBERTAS,
    ids,
    logits,
    made,
    partition,
    same_bytes,
    shake,
    snapshot,
    train,
    wide,
)
from test_transaction import interrupted

import minilora as ml
from minilora import adapters, lora, methods, nn
from minilora.adapters.places import adapted, bare, parameters
from minilora.adapters.registry import find, trained_by
from minilora.backend.settings import thread_settings
from minilora.generate import first_not_finite
from minilora.generate.inputs import window

pytestmark = pytest.mark.usefixtures("numpy_only")
SAMPLES = Path(__file__).parent / "samples"
IDS = ids(tokens=6, vocabulary=7)
SETTINGS = {  # of each method, as small as can be and unlike its defaults
    "lora": {"r": 2, "alpha": 5.0, "targets": ("q", "up", "tok")},
    "rslora": {"r": 2, "alpha": 3.0, "targets": ("q", "o")},
    "dora": {"r": 2, "alpha": 5.0}, "pissa": {"r": 2, "alpha": 7.0}, "full": {}, "fttop2": {},
    "peft-lora": {"r": 2, "alpha": 5.0, "targets": ("q", "v", "up"), "rslora": True},
    "bitfit": {}, "adapter-h": {"r": 2}, "adapter-l": {"r": 2}, "adapter-p": {"r": 2},
    "adapter-d": {"r": 2}, "preembed": {"lp": 2}, "prelayer": {"lp": 2},
    "lora+preembed": {"r": 2, "alpha": 3.0, "lp": 1},
    "lora+prelayer": {"r": 2, "alpha": 3.0, "lp": 1},
}
BIASED = {"r": 2, "alpha": 3.0, "targets": ("q", "v"), "bias": "all"}


class Own(nn.Module):
    """A user's model: a tied head, a layer that is used twice, and attributes with the engine's
    names."""

    def __init__(self, seed: int = 0, dtype: str = "float64") -> None:
        rng = np.random.default_rng(seed)
        self.tok = nn.Embedding(7, 4, rng=rng, dtype=dtype)
        self.base = nn.Linear(4, 4, rng=rng, dtype=dtype)
        self.adapters = [nn.Linear(4, 4, rng=rng, dtype=dtype)]
        self.adapters.append(self.adapters[0])  # one layer, twice
        self.methods = {"ln": nn.LayerNorm(4, dtype=dtype), "up": nn.Linear(4, 4, rng=rng,
                                                                            dtype=dtype)}
        self.head = nn.Linear(4, 7, bias=False, rng=rng, dtype=dtype)
        self.head.W = self.tok.W

    def forward(self, x):
        x = self.base(self.tok(x))
        for layer in self.adapters:
            x = ml.ops.tanh(layer(x))
        return self.head(self.methods["up"](self.methods["ln"](x)))


OWN = {
    "lora": {"r": 2, "alpha": 5.0, "targets": ("base", "adapters.1", "up")},
    "rslora": {"r": 2, "alpha": 3.0, "targets": ("base",)},
    "dora": {"r": 2, "alpha": 5.0, "targets": ("adapters.0", "up")},
    "pissa": {"r": 2, "alpha": 7.0, "targets": ("up",)}, "full": {}, "bitfit": {},
}
MODELS = {
    "gpt2": (lambda: made("gpt2"), SETTINGS), "bert": (lambda: made("bert"), SETTINGS),
    "deberta": (lambda: made("deberta", n_layers=1), SETTINGS), "own": (Own, OWN),
}


def method_of(called: str, table) -> adapters.Method:
    if called == "biased":
        return methods.LoRA(**BIASED | ({"targets": ("base",)} if table is OWN else {}))
    return methods.METHODS[called](**table[called])


def reference(pristine, model) -> np.ndarray:
    """The outputs of a plain copy of the base, with the active adapters computed by their formulas
    into its weights; bottlenecks and trained tokens are attached to it alone."""
    plain, state = copy.deepcopy(pristine), find(model)
    if state is None:
        return logits(plain, IDS)
    names = {name: p for name, _, p in parameters(plain)}
    for name in state.active:
        for at, p in state.copies[name].items():
            names[at].data[...] = p.data
    for at, module in adapted(model).items():
        base = bare(module)
        for name in module.active:
            part = module.adapters[name]
            if part.factors() is None:
                continue
            BA = sum(s * wide(B) @ wide(A) for s, B, A in part.factors())
            W = names[f"{at}.W"].data
            V = W + (BA.T if isinstance(base, nn.Embedding) else BA)
            if isinstance(part, methods.dora.DoRALinear):
                V = V * (wide(part.m) / np.linalg.norm(V, axis=1))[:, None]
            W[...] = V
    others = [name for name in state.active if any(
        part.factors() is None for m in adapted(model).values()
        for n, part in m.adapters.items() if n == name)]
    for name in others:
        method = state.configs[name]
        if isinstance(method, methods.LoRA):  # LoRA beside tokens: its updates are in W by now
            kind = methods.PreEmbed if "preembed" in method.called else methods.PreLayer
            method = kind(lp=method.lp, li=method.li)
        methods.apply(plain, method, name, rng=0)
        for at, p in trained_by(plain, name).items():
            p.data[...] = trained_by(model, name)[at].data
    if others:
        methods.activate(plain, *others)
    return logits(plain, IDS)


class Registry(RuleBasedStateMachine):
    """Functions in any order; after each, the outputs equal the reference, and no base changed."""

    names = st.sampled_from("abc")
    steps = 0

    @initialize(which=st.sampled_from(sorted(MODELS)))
    def begin(self, which):
        make, self.table = MODELS[which]
        self.model = make()
        frozen = self.model.blocks[0] if which != "own" else self.model.base
        frozen.requires_grad_(False)  # flags that have to come back
        self.pristine = copy.deepcopy(self.model)
        self.before, self.attributes = snapshot(self.model), dict(vars(self.model))
        self.groups = partition(self.model)

    def attached(self):
        state = find(self.model)
        return [] if state is None else list(state.configs)

    def active(self):
        state = find(self.model)
        return () if state is None else state.active

    def refused(self, call, *errors):
        """It raises one of these and changes nothing."""
        before = snapshot(self.model)
        with pytest.raises(errors or (ValueError, KeyError)):
            call()
        assert snapshot(self.model) == before

    @rule(name=names, data=st.data(), door=st.booleans(), seed=st.integers(0, 9))
    def attach(self, name, data, door, seed):
        called = data.draw(st.sampled_from([*self.table, "biased"]))
        method = method_of(called, self.table)
        attach = lora.attach if door else methods.apply
        if name in self.attached():
            self.refused(lambda: attach(self.model, method, name, rng=seed))
            return
        attach(self.model, method, name, rng=seed)
        trained = trained_by(self.model, name)
        assert self.active() == (name,)
        assert {*map(id, self.model.trainable_parameters().values())} == {
            *map(id, trained.values())}
        shake(trained.values(), seed, 0.3)

    @precondition(attached)
    @rule(data=st.data())
    def activate(self, data):
        chosen = data.draw(st.lists(st.sampled_from(self.attached()), unique=True))
        before = snapshot(self.model)
        try:
            methods.activate(self.model, *chosen)
        except ValueError:
            assert len(chosen) > 1 and snapshot(self.model) == before
        else:
            assert self.active() == tuple(chosen)

    @precondition(attached)
    @rule(data=st.data())
    def set_adapter(self, data):
        name = data.draw(st.sampled_from(self.attached()))
        lora.set_adapter(self.model, name)
        assert {*map(id, self.model.trainable_parameters().values())} == {
            *map(id, trained_by(self.model, name).values())}

    @precondition(attached)
    @rule(data=st.data())
    def detach(self, data):
        name = data.draw(st.sampled_from([*self.attached(), None]))
        (lora.detach if data.draw(st.booleans()) else methods.remove)(self.model, name)
        assert name not in self.attached()

    @precondition(attached)
    @rule()
    def disable(self):
        before = snapshot(self.model)
        with lora.disabled(self.model):
            assert same_bytes(logits(self.model, IDS), logits(self.pristine, IDS))
        assert snapshot(self.model) == before

    @precondition(attached)
    @rule()
    def merge_for_a_block(self):
        before, wanted = snapshot(self.model), reference(self.pristine, self.model)
        try:
            with lora.merged(self.model):
                np.testing.assert_allclose(logits(self.model, IDS), wanted, rtol=1e-8, atol=1e-8)
                copied = copy.deepcopy(self.model)  # a plain model, which is not locked
        except ValueError:  # nothing that is active can be merged
            pass
        else:
            copied.load_state_dict(copied.state_dict())
        assert snapshot(self.model) == before

    @precondition(attached)
    @rule()
    def merge_a_copy(self):
        other, wanted = copy.deepcopy(self.model), reference(self.pristine, self.model)
        assert partition(other) == self.groups
        before = snapshot(other)
        try:
            lora.merge(other)
        except ValueError:
            assert snapshot(other) == before
            return
        assert partition(other) == self.groups and find(other) is None
        np.testing.assert_allclose(logits(other, IDS), wanted, rtol=1e-8, atol=1e-8)
        assert [p.requires_grad for p in other.parameters()] == [
            p.requires_grad for p in self.pristine.parameters()]

    @precondition(attached)
    @rule(data=st.data(), name=names)
    def combine(self, data, name):
        chosen = data.draw(st.sampled_from(self.attached()))
        before = snapshot(self.model)
        try:
            lora.combine(self.model, {chosen: 0.5}, name=name)
        except ValueError:
            assert snapshot(self.model) == before

    @precondition(attached)
    @rule(data=st.data(), name=names, trainable=st.booleans())
    def save_and_load(self, data, name, trainable):
        chosen = data.draw(st.sampled_from(self.attached()))
        path = self.folder / "a.npz"
        (lora.save if trainable else methods.save)(self.model, path, chosen)
        if name in self.attached():
            self.refused(lambda: lora.load(self.model, path, name))
            return
        flags = [p.requires_grad for p in trained_by(self.model, chosen).values()]
        methods.load(self.model, path, name, trainable=trainable)
        loaded = trained_by(self.model, name).values()
        assert {p.requires_grad for p in loaded} == {trainable}
        assert [p.requires_grad for p in trained_by(self.model, chosen).values()] == flags
        other = copy.deepcopy(self.pristine)
        methods.load(other, path)
        np.testing.assert_allclose(logits(other, IDS), logits(self.model, IDS), rtol=1e-9)

    @precondition(attached)
    @rule(data=st.data())
    def rows_of_their_own(self, data):
        names = data.draw(st.lists(st.sampled_from([*self.attached(), "base"]), min_size=2,
                                   max_size=2))
        before = snapshot(self.model)
        try:
            with lora.per_row(self.model, names):
                got = logits(self.model, IDS)
        except ValueError:
            return
        finally:
            assert snapshot(self.model) == before
        other = copy.deepcopy(self.model)
        for row, name in enumerate(names):
            methods.activate(other, *[name] * (name != "base"))
            wanted = logits(other, IDS[row : row + 1])[0]
            np.testing.assert_allclose(got[row], wanted, rtol=1e-9, atol=1e-11)

    @rule()
    def verbs_for_unknown_names(self):
        for verb in (lora.activate, lora.set_adapter, lora.detach):
            self.refused(lambda verb=verb: verb(self.model, "nobody"))
        for name in ("", "a.b", "base"):
            self.refused(lambda name=name: methods.apply(self.model, "bitfit", name))
        self.refused(lambda: methods.apply(self.model, "lora", "new", targets="nowhere"))
        self.refused(lambda: lora.attach(self.model, "lora"), TypeError)

    @rule(data=st.data(), line=st.integers(1, 1200))
    def interrupt(self, data, line):
        """At any line of any verb: then nothing has changed."""
        table, attached = self.table, self.attached()
        new = method_of(data.draw(st.sampled_from([*table, "biased"])), table)
        calls = [lambda: methods.apply(self.model, new, "new", rng=1)]
        if attached:
            name = data.draw(st.sampled_from(attached))
            calls += [
                lambda: lora.set_adapter(self.model, name), lambda: lora.detach(self.model, name),
                lambda: lora.detach(self.model), lambda: lora.activate(self.model, name),
                lambda: lora.activate(self.model),
                lambda: methods.load(self.model, self.saved(name), "new"),
                lambda: self.enter(lora.disabled), lambda: self.enter(lora.merged),
            ]
        call = data.draw(st.sampled_from(calls))
        before = snapshot(self.model)
        try:
            ended = not interrupted(call, line)
        except (ValueError, KeyError):  # "new" is taken, or nothing can be merged
            ended = False
        if not ended:
            assert snapshot(self.model) == before

    def enter(self, context):
        with context(self.model):
            pass

    def saved(self, name):
        path = self.folder / "b.npz"
        methods.save(self.model, path, name)
        return path

    @invariant()
    def the_outputs_are_the_reference_s_and_what_is_one_stays_one(self):
        if not hasattr(self, "model"):
            return
        type(self).steps += 1
        assert partition(self.model) == self.groups
        wanted = reference(self.pristine, self.model)
        np.testing.assert_allclose(logits(self.model, IDS), wanted, rtol=1e-8, atol=1e-8)
        if not self.attached():
            assert snapshot(self.model) == self.before and vars(self.model) == self.attributes

    def teardown(self):
        if hasattr(self, "model") and self.attached():
            lora.detach(self.model)
            assert snapshot(self.model) == self.before and vars(self.model) == self.attributes


@pytest.mark.filterwarnings("ignore:load. .* trained on another base")
def test_every_verb_in_any_order(tmp_path_factory):
    Registry.folder = tmp_path_factory.mktemp("registry")
    run_state_machine_as_test(Registry, settings=settings(
        max_examples=200 if THOROUGH else 12, stateful_step_count=30 if THOROUGH else 12))


# Mistakes that were planted.


@pytest.mark.parametrize("order", [("one", "two"), ("two", "one")])
def test_of_two_bottlenecks_the_first_that_is_named_is_the_inner_one(order):
    model = made("gpt2")
    for seed, name in enumerate(("one", "two")):
        methods.apply(model, "adapter-p", name, rng=seed, r=2)
        shake(model.trainable_parameters().values(), seed, 0.5)
    methods.activate(model, *order)
    mlp, x = model.blocks[0].mlp, ml.Tensor(np.random.default_rng(0).standard_normal((2, 3, 8)))
    wanted = wide(mlp.base(x))
    for name in order:
        part = mlp.adapters[name]
        inside = np.maximum(wanted @ wide(part.down.W).T + wide(part.down.b), 0)
        wanted = wanted + inside @ wide(part.up.W).T + wide(part.up.b)
    np.testing.assert_allclose(wide(mlp(x)), wanted, rtol=1e-9, atol=1e-11)


class Ends(nn.Module):
    """A layer "q", and "sub.q": one path is the end of the other."""

    def __init__(self) -> None:
        self.q, self.sub = nn.Linear(3, 3, rng=0, dtype="float64"), nn.Module()
        self.sub.q = nn.Linear(3, 3, rng=1, dtype="float64")


@pytest.mark.parametrize("how", ["cat", "svd", "linear"])
@pytest.mark.parametrize("config", [{"targets": "q", "rank_pattern": {"sub.q": 1}},
                                    {"targets": "[q]"}, {"targets": "sub.q"}])
def test_combine_keeps_to_the_paths_and_ranks_of_what_it_combines(how, config):
    model = Ends()
    paths = lora.attach(model, ml.LoRAConfig(r=2, alpha=3, **config), "a", rng=0)
    shake(model.trainable_parameters().values(), 1)
    off = lora.combine(model, {"a": -0.5}, how, name="b")
    assert [*off] == paths and max(off.values()) < 1e-12
    assert [at for at, module in adapted(model).items() if "b" in module.adapters] == paths


@pytest.mark.parametrize("flag", [False, True])
@pytest.mark.parametrize("end", [lora.merge, lora.detach])
@pytest.mark.parametrize("config", [{"targets": "late"}, {"targets": "q", "trainable": "late"}])
def test_a_layer_that_came_after_the_first_adapter_has_flags_of_its_own(config, end, flag):
    model = Ends()
    lora.attach(model, ml.LoRAConfig(r=2, targets="q"), "a", rng=0)
    model.late = nn.Linear(3, 2, rng=0, dtype="float64").requires_grad_(flag)
    lora.attach(model, ml.LoRAConfig(r=2, **config), "b", rng=0)
    lora.activate(model, "a", "b")
    end(model)
    assert {p.requires_grad for p in model.late.parameters()} == {flag}
    assert all(p.requires_grad for layer in (model.q, model.sub.q) for p in layer.parameters())


@pytest.mark.parametrize("flag", [False, True])
def test_detach_leaves_the_flags_of_a_layer_that_no_adapter_has_met(flag):
    model = Ends()
    lora.attach(model, ml.LoRAConfig(r=2, targets="q"), rng=0)
    model.late = nn.Linear(3, 2, rng=0).requires_grad_(flag)
    lora.detach(model)
    assert {p.requires_grad for p in model.late.parameters()} == {flag}


@pytest.mark.parametrize("path, other", [("tok", "head.W"), ("head", "tok.W")])
def test_a_weight_of_two_modules_gets_no_adapter_that_merging_would_part(path, other):
    model = Own()
    before = snapshot(model)
    with pytest.raises(ValueError, match=f"{path}.W and {other} are one parameter"):
        methods.apply(model, "lora", targets=path, rng=0)
    assert snapshot(model) == before and find(model) is None
    methods.apply(model, "lora", targets="base", trainable="head", rng=0)  # a copy is no adapter
    assert model.head.W is model.tok.W


def test_the_window_is_less_by_the_active_tokens_alone():
    model = made("gpt2")  # 12 positions
    methods.apply(model, "preembed", "one", lp=2, li=1, rng=0)
    methods.apply(model, "prelayer", "two", lp=4, rng=0)
    methods.apply(model, "bitfit", "three")
    windows = {("one",): 9, ("two",): 8, ("three",): 12, (): 12, ("one", "three"): 9}
    for names, left in windows.items():
        methods.activate(model, *names)
        assert window(model, 5) == left


@pytest.mark.parametrize("called", ["adapter-h", "preembed", "prelayer"])
def test_a_block_is_not_merged_where_nothing_that_is_active_can_be(called):
    model = made("gpt2")
    methods.apply(model, "lora", "update", targets="q", rng=0)
    methods.apply(model, called, "other", rng=0, **SETTINGS[called])
    before = snapshot(model)
    for verb in (lora.merge, lambda model: lora.merged(model).__enter__()):
        with pytest.raises(ValueError, match="merge: "):
            verb(model)
        assert snapshot(model) == before
    methods.activate(model, "update", "other")
    says = f"merge: other .{called}. at .* is not an update of a layer's W"
    with pytest.raises(ValueError, match=says):
        lora.merge(model)
    with lora.merged(model):
        assert {name for m in adapted(model).values() for name in m.active} == {"other"}


@pytest.mark.parametrize("family", ["gpt2", "bert"])
@pytest.mark.parametrize("active", [(), ("one",), ("one", "two")])
@pytest.mark.parametrize("rows", [("one", "two", "base"), ("base", "two", "one", "two")])
def test_a_row_of_its_own_has_its_own_tied_head_whatever_is_active(family, active, rows):
    model = made(family)
    for seed, name in enumerate(("one", "two")):
        lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets="tok"), name, rng=seed)
        shake(model.trainable_parameters().values(), seed, 0.5)
    x, alone = ids(batch=len(rows), tokens=6), []
    for row, name in zip(x, rows):
        lora.activate(model, *[name] * (name != "base"))
        alone.append(logits(model, row[None])[0])
    lora.activate(model, *active)
    with lora.per_row(model, rows):
        np.testing.assert_allclose(logits(model, x), alone, rtol=1e-9, atol=1e-11)


def test_rows_of_their_own_do_not_share_a_copy_that_happens_to_be_active():
    model = made("gpt2")
    lora.attach(model, ml.LoRAConfig(r=2), "update", rng=0)
    methods.apply(model, "bitfit", "biases")
    before = snapshot(model)
    with (
        pytest.raises(ValueError, match="'biases' trains a copy of"),
        lora.per_row(model, ["update", "base"]),
    ):
        pass
    assert snapshot(model) == before
    lora.activate(model)
    with lora.per_row(model, ["update", "base"]):
        got = logits(model, IDS)[1]
    # One product for both rows or one for each: a BLAS kernel may round the two apart.
    np.testing.assert_allclose(got, logits(made("gpt2"), IDS)[1], rtol=1e-9, atol=1e-11)


class Shared(nn.Module):
    """y = out(x + start(one)): `start` gets an input that all rows share, (1, ...) or a slice."""

    def __init__(self, one) -> None:
        self.start, self.out = nn.Embedding(5, 4, rng=0, dtype="float64"), nn.Linear(
            4, 3, rng=1, dtype="float64")
        self.layer, self.one = nn.Linear(4, 4, rng=2, dtype="float64"), one

    def forward(self, x):
        start = self.start(self.one)
        if len(start.shape) == 2:  # a first axis says that all rows share it
            start = start.reshape(1, *start.shape)
        return self.out(x + self.layer(start))


@pytest.mark.parametrize("one", [slice(1, 4), np.array([[3, 0, 3]])], ids=["slice", "ids"])
@pytest.mark.parametrize("targets", ["start", "layer", ("start", "layer", "out")])
def test_of_an_input_that_all_rows_share_each_row_has_its_own_output(one, targets):
    model, rows = Shared(one), ("two", "base", "one", "two")
    for seed, name in enumerate(("one", "two")):
        lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets=targets), name, rng=seed)
        shake(model.trainable_parameters().values(), seed, 0.5)
    x, alone = np.random.default_rng(0).standard_normal((4, 3, 4)), []
    for row, name in zip(x, rows):
        lora.activate(model, *[name] * (name != "base"))
        alone.append(logits(model, ml.Tensor(row[None]))[0])
    with lora.per_row(model, rows):
        np.testing.assert_allclose(logits(model, ml.Tensor(x)), alone, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("config", DEBERTAS)
def test_each_row_of_a_deberta_has_its_own_table_of_distances(config):
    model, rows = made("deberta", **config), ("two", "base", "one")
    for seed, name in enumerate(("one", "two")):
        lora.attach(model, ml.LoRAConfig(r=2, targets="all-linear"), name, rng=seed)
        shake(model.trainable_parameters().values(), seed, 0.5)
    x, alone = ids(batch=3, tokens=5), []
    for row, name in zip(x, rows):
        lora.activate(model, *[name] * (name != "base"))
        alone.append(logits(model, row[None])[0])
    with lora.per_row(model, rows):
        np.testing.assert_allclose(logits(model, x), alone, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("first", ["the part", "the whole"])
def test_a_part_with_adapters_of_its_own_is_not_taken_over(first):
    model = made("gpt2")
    one, other = (model.blocks[0], model) if first == "the part" else (model, model.blocks[0])
    lora.attach(one, ml.LoRAConfig(r=2), rng=0)
    before = snapshot(model), snapshot(model.blocks[0])
    for name in ("default", "new"):
        with pytest.raises(ValueError, match="a part of this model"):
            lora.attach(other, ml.LoRAConfig(r=3), name, rng=0)
    assert (snapshot(model), snapshot(model.blocks[0])) == before


def test_one_name_for_all_rows_needs_as_many_rows():
    model = made("gpt2")
    lora.attach(model, ml.LoRAConfig(r=2), rng=0)
    with lora.per_row(model, ["default", "default"]), pytest.raises(ValueError, match="2 names"):
        model(ids(batch=3))


# Faults of two registries, each once.
KINDS = ("bitfit", "full", "biased", "adapter-h", "preembed")
DOORS = [lora.attach, methods.apply]
COPIES = ("bitfit", "full", "biased")


def trained(model, *kinds, door=methods.apply):
    """The model with these attached one after another, each under its own name, and trained."""
    for kind in kinds:
        door(model, method_of(kind, SETTINGS), kind, rng=0)
        shake(trained_by(model, kind).values(), 1)
    return model


@pytest.mark.parametrize("door", DOORS)
def test_after_any_two_the_base_is_back_whichever_goes_first(door):
    for kinds in itertools.permutations(KINDS, 3 if THOROUGH else 2):
        for gone in (kinds, kinds[::-1]):
            model = made("gpt2", n_layers=1)
            model.blocks[0].attn.requires_grad_(False)
            before, wanted = snapshot(model), logits(model, IDS)
            trained(model, *kinds, door=door)
            lora.activate(model)
            assert same_bytes(logits(model, IDS), wanted)
            for kind in gone:
                lora.activate(model, kind)
                lora.detach(model, kind)
            assert snapshot(model) == before


@pytest.mark.parametrize("kind", ["adapter-h", "prelayer", "lora+prelayer"])
def test_a_file_has_the_paths_of_the_base_whatever_stands_beside_its_adapter(kind, tmp_path):
    at = ("blocks.0.attn.q", "blocks.1.mlp.up")
    model, path = made("gpt2"), tmp_path / "a.npz"
    assert lora.attach(model, ml.LoRAConfig(r=2, targets=at), "a", rng=0) == [*at]
    shake(trained_by(model, "a").values(), 1)
    wanted = logits(model, IDS)
    lora.save(trained(model, kind), path, "a")
    for other in (made("gpt2"), trained(made("gpt2"), kind)):
        assert lora.load(other, path) == [*at] and same_bytes(logits(other, IDS), wanted)
        assert lora.attach(other, ml.LoRAConfig(r=2, targets=at), "b") == [*at]


@pytest.mark.parametrize("verb", [lora.detach, lora.merge, methods.remove])
def test_what_one_door_takes_off_is_gone_for_the_other(verb, tmp_path):
    model = trained(made("gpt2"), "lora")
    verb(model)
    for call in (lambda: methods.save(model, tmp_path / "a.npz", "lora"),
                 lambda: methods.remove(model), lambda: lora.detach(model)):
        with pytest.raises(ValueError, match="no adapter"):
            call()


@pytest.mark.parametrize("doors", [*itertools.product(DOORS, DOORS)])
def test_a_name_is_taken_by_whichever_door_it_came(doors):
    for one, other in itertools.product(("lora", "bitfit", "adapter-h"), repeat=2):
        model = made("gpt2", n_layers=1)
        doors[0](model, method_of(one, SETTINGS), "x")
        before = snapshot(model)
        with pytest.raises(ValueError, match="'x' cannot be an adapter's name"):
            doors[1](model, method_of(other, SETTINGS), "x")
        assert snapshot(model) == before


@pytest.mark.parametrize("kinds", [*itertools.permutations(COPIES, 2)])
def test_two_copies_of_one_parameter_are_never_active_together(kinds):
    model = trained(made("gpt2", n_layers=1), *kinds)
    with pytest.raises(ValueError, match=r"each train a copy of"):
        lora.activate(model, *kinds)


@pytest.mark.parametrize("kind", ["adapter-h", "lora", "bitfit"])
def test_a_loaded_one_leaves_the_trained_one_its_flags_and_either_can_be_trained_again(
    kind, tmp_path
):
    path = tmp_path / "a.npz"
    methods.save(trained(made("gpt2"), kind), path)
    model = trained(made("gpt2"), "adapter-p")
    methods.load(model, path, "loaded")
    wanted = [*map(id, trained_by(model, "adapter-p").values())]
    lora.activate(model, "adapter-p")
    assert [*map(id, model.trainable_parameters().values())] == wanted
    for name in ("loaded", "adapter-p"):
        lora.set_adapter(model, name)
        assert {*map(id, model.trainable_parameters().values())} == {
            *map(id, trained_by(model, name).values())}


@pytest.mark.parametrize("kinds, one, other", [
    (("lora", "rslora"), lambda m: lora.per_row(m, ["lora", "rslora"]),
     lambda m: lora.per_row(m, ["rslora", "lora"])),
    (("lora",), lambda m: lora.per_row(m, ["lora", "lora"]), contextlib.nullcontext),
    (("preembed",), lambda m: methods.prompt(2), lambda m: methods.prompt(3)),
    (("preembed",), lambda m: methods.prompt([2, 3]), lambda m: methods.prompt([3, 2])),
    (("lora",), contextlib.nullcontext, lambda m: setattr(m, "recompute", True)),
])
def test_a_run_under_another_context_is_another_run(kinds, one, other, tmp_path):
    def fit(context):
        model = trained(made("gpt2"), *kinds)
        for name in kinds:
            for p in trained_by(model, name).values():
                p.requires_grad = True
        with context(model) or contextlib.nullcontext():
            ml.fit(model, [(IDS[:, :-1], IDS[:, 1:])], ml.AdamW(model.trainable_parameters(), 0.01),
                   1, checkpoint=tmp_path / "run.npz", progress=False)

    fit(one)
    fit(one)
    with pytest.raises(ValueError, match="is a checkpoint of another run"):
        fit(other)


@pytest.mark.parametrize("family, targets, sizes", [
    ("deberta", ("rel",), {}), ("deberta", ("q", "k"), {}),
    ("deberta", ("pos_k", "pos_q", "rel"), {"share_att_key": False}),
    *((family, ("dense", "out", "v"), {"num_labels": 3}) for family in ("deberta", "bert",
                                                                        "roberta")),
    ("gpt2", ("tok", "q"), {}),
])
def test_each_row_is_what_it_is_alone(family, targets, sizes):
    model, names = made(family, **sizes), ["a", "base", "b", "a"]
    for name in "ab":
        lora.attach(model, ml.LoRAConfig(r=2, alpha=3, targets=targets), name, rng=0)
        shake(trained_by(model, name).values(), ord(name), 0.4)
    x = ids(batch=4)
    with lora.per_row(model, names):
        got = logits(model, x)
    for i, name in enumerate(names):
        lora.activate(model, *[name] * (name != "base"))
        np.testing.assert_allclose(got[i], logits(model, x[i : i + 1])[0], rtol=1e-9, atol=1e-11)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_one_row_s_overflow_in_half_precision_is_its_own():
    model = made("gpt2", dtype="float16")
    for name in "ab":
        lora.attach(model, ml.LoRAConfig(r=2), name, rng=0)
        shake(trained_by(model, name).values(), 1)
    for at, p in trained_by(model, "a").items():
        p.data[...] = 1e30 if at.endswith(".B") else p.data
    with lora.per_row(model, ["a", "b", "base"]):
        rows = np.isfinite(logits(model, ids(batch=3))).all(axis=(1, 2))
    assert [*rows] == [False, True, True]


def test_dora_leaves_a_row_of_zeros_what_it_was_and_trains_on():
    model = made("gpt2")
    model.blocks[0].attn.q.W.data[1] = 0
    wanted = logits(model, IDS)
    methods.apply(model, "dora", r=2, rng=0)
    np.testing.assert_allclose(logits(model, IDS), wanted, rtol=1e-12)
    train(model)
    assert np.isfinite(logits(model, IDS)).all() and not same_bytes(logits(model, IDS), wanted)
    with lora.merged(model):
        merged = logits(model, IDS)
    np.testing.assert_allclose(merged, logits(model, IDS), rtol=1e-9)


class Short(ml.GPT2):
    """A GPT-2 of one block that runs few lines."""

    def __init__(self):
        vars(self).update(vars(made("gpt2", n_layers=1, dropout=0.5).train()))

    def forward(self, x):
        return ml.Tensor(np.full((*x.shape, 11), self.ln_f.b.data[0]))


def block(context):
    def call(model):
        with context(model):
            pass

    return call


@pytest.fixture
def thread():
    """The settings of this thread; what an interrupt leaves of them ends with the test."""
    before = dict(vars(thread_settings))
    with np.errstate():
        yield lambda: (thread_settings.recording, thread_settings.context)
    vars(thread_settings).clear()
    vars(thread_settings).update(before)


@pytest.mark.parametrize("context", [
    lambda m: ml.no_grad(), lambda m: methods.prompt(2), lambda m: lora.per_row(m, ["a"]),
], ids=["no_grad", "prompt", "per_row"])
def test_an_interrupt_at_any_line_gives_the_thread_its_settings_back(context, thread):
    model, before, line = Own(), thread(), 1
    lora.attach(model, ml.LoRAConfig(r=1, targets="base"), "a")
    while interrupted(lambda: block(context)(model), line):
        assert thread() == before, line
        line += 1


# Short: a product that is interrupted where it leaves the lock of threads.py would wait for ever
@pytest.mark.parametrize("make, call", [
    (Own, block(lora.disabled)), (Own, block(lora.merged)), (Short, block(nn.evaluating)),
    (Short, lambda m: ml.evaluate(m, [(IDS, IDS)], lambda m, b: m(b[0]).sum())),
    (Short, lambda m: ml.generate(m, IDS, 1, cache=False)),
    (Short, lambda m: first_not_finite(m, IDS)),
], ids=["disabled", "merged", "evaluating", "evaluate", "generate", "first_not_finite"])
def test_an_interrupt_at_any_line_of_a_block_leaves_no_trace(make, call, thread):
    model = make()
    if make is Own:
        lora.attach(model, ml.LoRAConfig(r=1, targets="base", trainable="up"), rng=0)
        model.train()

    def state():
        return snapshot(model), [(m, dict(vars(m))) for _, m in model.named_modules()]

    before = state()
    count = bisect.bisect_left(range(1, 9999), True, key=lambda n: not interrupted(
        lambda: call(model), n))
    step = 1 if THOROUGH else 50
    for line in {*range(1, count + 1, step), *range(max(1, count - 40), count + 1)}:
        assert interrupted(lambda: call(model), line)
        assert state() == before, line


def test_a_user_s_names_mean_nothing_to_the_registry():
    model = Own()
    model.W = nn.Parameter(np.ones((4, 4)))  # beside base.W
    before = snapshot(model)
    methods.apply(model, "full")
    assert len(model.trainable_parameters()) == len(model.parameters())
    lora.attach(model, ml.LoRAConfig(r=1, targets=("base", "adapters.0", "up")), "lora")
    assert snapshot(lora.detach(model)) == before


def test_one_stays_one_when_it_is_trained_saved_and_merged(tmp_path):
    model, other = Own(), Own()
    for own in (model, other):
        own.adapters.append(own.adapters[0])  # three times, and a head that is tied
    groups = partition(model)
    methods.apply(model, "full")
    shake(model.trainable_parameters().values(), 1)
    assert partition(model) == groups and model.head.W is model.tok.W
    methods.remove(model)
    lora.attach(model, ml.LoRAConfig(r=2, targets="adapters.*"), rng=0)
    shake(model.trainable_parameters().values(), 1)
    lora.save(model, tmp_path / "a.npz")
    lora.load(other, tmp_path / "a.npz")
    wanted = logits(model, IDS)
    assert same_bytes(logits(other, IDS), wanted)
    lora.merge(model)
    assert partition(model) == groups
    np.testing.assert_allclose(logits(model, IDS), wanted, rtol=1e-9)
    lora.detach(other)
    other.load_state_dict(model.state_dict())
    assert same_bytes(logits(other, IDS), logits(model, IDS))


@pytest.mark.parametrize("target", ["tok", "head"])
def test_lora_of_a_tied_head_is_refused_with_both_names(target):
    model = Own()
    before = snapshot(model)
    with pytest.raises(ValueError, match=r"(tok\.W.*head\.W|head\.W.*tok\.W).* are one parameter"):
        lora.attach(model, ml.LoRAConfig(r=2, targets=target))
    assert snapshot(model) == before


def test_a_model_of_a_user_s_own_generates_and_its_own_embed_is_no_seam():
    """A decoder whose table is called `embed`: trained tokens need a seam, generating does not."""

    class Decoder(nn.Module):
        def __init__(self) -> None:
            self.config = ml.GPT2Config(7, 6, 4, 1, 1)
            self.embed, self.head = nn.Embedding(7, 4, rng=0), nn.Linear(4, 7, rng=0)

        def forward(self, x, cache=None):
            return self.head(self.embed(x))

        def new_cache(self, batch):
            return []

    model = Decoder()
    said = ml.generate(model, [1, 2], 8, temperature=0, cache=False)
    lora.attach(model, ml.LoRAConfig(targets=("embed", "head"), r=1), rng=0)
    assert (ml.generate(model, [1, 2], 8, temperature=0, cache=False) == said).all()
    with pytest.raises(ValueError, match="no seams `embed` and `through`"):
        methods.apply(model, "preembed", "tokens")
