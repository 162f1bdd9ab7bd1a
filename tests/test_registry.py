"""The registry of adapters: its functions in any order, on any model (minilora.adapters)."""

import copy
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
from strategies import DEBERTAS, ids, logits, made, partition, same_bytes, shake, snapshot, wide
from test_transaction import interrupted

import minilora as ml
from minilora import adapters, lora, methods, nn
from minilora.adapters.places import adapted, bare, parameters
from minilora.adapters.registry import find, trained_by
from minilora.models.cache import window

pytestmark = pytest.mark.usefixtures("numpy_only")
SAMPLES = Path(__file__).parent / "samples"
IDS = ids(tokens=6, vocabulary=7)
SETTINGS = {  # of each method, as small as can be and unlike its defaults
    "lora": {"r": 2, "alpha": 5.0, "targets": ("q", "up", "tok")},
    "rslora": {"r": 2, "alpha": 3.0, "targets": ("q", "o")},
    "dora": {"r": 2, "alpha": 5.0}, "pissa": {"r": 2, "alpha": 7.0}, "full": {}, "fttop2": {},
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
    with pytest.raises(ValueError, match=f"merge: other .{called}. at .* computes between layers"):
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
        assert same_bytes(logits(model, IDS)[1], logits(made("gpt2"), IDS)[1])


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
