"""Functions that change a model change all of it or nothing (minilora.adapters.transaction)."""

import functools
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import THOROUGH
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import adapted, everything, gpt2, ids, seeds, shake, snapshot

import minilora as ml
from minilora import lora
from minilora.adapters.transaction import restore_on_error
from minilora.nn import evaluating

PACKAGE = str(Path(ml.__file__).parent)


class Interrupted(BaseException):
    """As KeyboardInterrupt, which would stop the tests themselves."""


def interrupted(call, after: int) -> bool:
    """Run it, and raise at the `after`-th line of the package that runs; False: it ended before.

    Once only: the restoring itself is not interrupted.
    """
    left = after

    def trace(frame, event, arg):
        nonlocal left
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            left -= 1
            if left == 0:
                sys.settrace(None)
                raise Interrupted
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    except Interrupted:
        return True
    finally:
        sys.settrace(before)
    return False


def lines_of(call) -> int:
    """Run it; return how many lines of the package ran."""
    count = 0

    def trace(frame, event, arg):
        nonlocal count
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    try:
        sys.settrace(trace)
        call()
    finally:
        sys.settrace(before)
    return count


pytestmark = pytest.mark.usefixtures("numpy_only")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Files of what is loaded: an adapter, a model's state, an optimizer's."""
    return tmp_path_factory.mktemp("files")


def subject(seed: int = 0):
    """(model, optimizer): two adapters, of which "one" has a copy of ln_f, gradients, a dropout."""
    model = gpt2(seed, "float32", dropout=0.25)
    for name, targets in (("one", ("q", "tok")), ("two", ("q", "up"))):
        config = ml.LoRAConfig(
            r=2, alpha=3, targets=targets, dropout=0.5, trainable=["ln_f"] * (name == "one")
        )
        lora.attach(model, config, name, rng=seed)
        shake(model.trainable_parameters().values(), seed)
    optimizer = ml.AdamW(model.trainable_parameters(), lr=0.1)
    ml.ops.cross_entropy(model(ids()), ids(1)).backward()
    optimizer.step()
    lora.activate(model, "one", "two")
    return model, optimizer


def load_state(model, optimizer, folder):
    model.load_state_dict({n: a + np.float32(1) for n, a in model.state_dict().items()})


def load_optimizer(model, optimizer, folder):
    state = {n: a + np.float32(1) for n, a in optimizer.state_dict().items()}
    optimizer.load_state_dict({**state, "t": np.array(7)})


def load_adapter(model, optimizer, folder):
    lora.load(model, folder / "a.npz", name="three", base_dtype="float16")


CALLS = {
    "attach": lambda m, o, f: lora.attach(
        m, ml.LoRAConfig(r=3, targets=("k", "tok"), trainable="pos", bias="all"), "three", rng=1,
        base_dtype="float16"),
    "activate": lambda m, o, f: lora.activate(m, "two"),
    "set_adapter": lambda m, o, f: lora.set_adapter(m, "one"),
    "detach one": lambda m, o, f: lora.detach(m, "one"),
    "detach": lambda m, o, f: lora.detach(m),
    "merge": lambda m, o, f: lora.merge(m),
    "load": load_adapter,
    "load_peft": lambda m, o, f: lora.load_peft(m, f / "peft load_peft", "three"),
    "load_state_dict": load_state,
    "optimizer": load_optimizer,
}


def outline(model) -> list:
    """Names, flags and what is attached and active: equal for two models in the same state."""
    _, modules, parameters, held, state, copies, locked, groups = snapshot(model)
    return [
        [at for at, _ in modules], [(at, flag) for at, _, flag in parameters],
        [(at, [name for name, _ in parts], active) for at, parts, active in held],
        state and (state[0], state[1], [*state[2]]),
        copies and {name: [*each] for name, each in copies.items()}, locked, groups,
    ]


@functools.cache
def length(name: str, folder) -> int:
    """How many lines of the package the call runs."""
    other, _ = adapted(5, "float32", targets=("v", "tok"), trainable="pos", dropout=0.5)
    lora.save(other, folder / "a.npz")
    other, _ = adapted(5, "float32", targets=("q", "v"), bias="lora")
    lora.save_peft(other, folder / f"peft {name}")
    CALLS[name](*subject(), folder)  # what is imported or kept once is no line of a later call
    model, optimizer = subject()
    return lines_of(lambda: CALLS[name](model, optimizer, folder))


@pytest.mark.filterwarnings("ignore:load. .* trained on another base")
@pytest.mark.parametrize("name", CALLS)
@settings(max_examples=8)
@given(st.floats(0, 1), seeds)
@example(1.0, 0)
def test_an_interrupt_at_any_line_leaves_everything_as_it_was_or_all_of_it_done(
    folder, name, where, seed
):
    after = 1 + int(where * (length(name, folder) - 1))
    model, optimizer = subject(seed)
    before = everything(model, optimizer)
    assert interrupted(lambda: CALLS[name](model, optimizer, folder), after)
    if everything(model, optimizer) != before:  # then the call had done all of its work
        other, twin = subject(seed)
        CALLS[name](other, twin, folder)
        assert everything(model, optimizer)[1:] == everything(other, twin)[1:]
        assert snapshot(model)[0] == snapshot(other)[0]
        assert outline(model) == outline(other)


@pytest.mark.parametrize("name", ["activate", "set_adapter"])
def test_an_interrupt_near_the_end_of_a_short_call_leaves_everything_as_it_was(name, folder):
    last = length(name, folder)
    model, optimizer = subject()
    before = everything(model, optimizer)
    for after in range(max(1, last - 400), last - 10, 7):  # the end: the call has done its work
        assert interrupted(lambda: CALLS[name](model, optimizer, folder), after)
        assert everything(model, optimizer) == before, after


@pytest.mark.parametrize("context", [lora.disabled, lora.merged, evaluating])
@settings(max_examples=12)
@given(st.integers(1, 400))
def test_an_interrupt_on_the_way_into_a_block_or_inside_it_leaves_everything_as_it_was(
    context, after
):
    model, optimizer = subject()
    before = everything(model, optimizer)

    def call():
        with context(model):
            raise Interrupted

    interrupted(call, after)
    assert everything(model, optimizer) == before


@pytest.mark.parametrize("context, out", [
    (lora.disabled, False), (lora.disabled, True), (lora.merged, False), (lora.merged, True),
    (evaluating, False),
])
def test_an_interrupt_at_any_line_of_a_block_s_way_in_or_out_leaves_everything(context, out):
    model, optimizer = subject()
    before = everything(model, optimizer)

    def call(model, inside=not out):
        with context(model):
            if inside:
                sys.settrace(None)  # no interrupt after this one
                raise Interrupted

    lines, (other, _) = 1, subject()
    while interrupted(lambda: call(other, False), lines):
        lines *= 2
    for after in np.linspace(1, lines, 80 if THOROUGH else 25).astype(int):
        interrupted(lambda: call(model), after)
        assert everything(model, optimizer) == before, after


@pytest.mark.parametrize("name", ["attach", "set_adapter", "activate", "detach", "merge", "load"])
def test_what_changes_a_model_wants_it_first(name):
    with pytest.raises(TypeError, match=f"^{name}: the model comes first, and not str$"):
        getattr(lora, name)("a.npz", gpt2())


def test_everything_that_can_change_is_restored():
    model, optimizer = subject()
    model.extra = [np.zeros(2), {"a": (1, [2])}]
    before = everything(model, optimizer)
    drawn = repr(model.drop.rng.bit_generator.state)
    with pytest.raises(Interrupted), restore_on_error(model, optimizer):
        model(ids())  # dropout draws
        assert repr(model.drop.rng.bit_generator.state) != drawn
        model.blocks.reverse()
        model.blocks.pop()
        model.extra[1]["a"][1].append(3)
        model.new = 1
        optimizer.t, optimizer.lr = 9, 0.5
        optimizer.state.clear()
        for p in model.parameters():
            p.data, p.grad = p.data + 1, None
        raise Interrupted
    assert everything(model, optimizer) == before and not hasattr(model, "new")
    assert optimizer.lr == 0.1 and model.extra[1] == {"a": (1, [2])}
    with restore_on_error(model):
        model.new = 1
    assert model.new == 1


def test_train_and_eval_inside_merged_last():
    model, _ = adapted(dropout=0.5)
    for mode in (False, True):
        with lora.merged(model):
            model.train(mode)
        assert {module.training for _, module in model.named_modules()} == {mode}


def test_inside_merged_no_part_of_the_model_is_loaded_into():
    model, _ = adapted()
    state = model.blocks[0].attn.state_dict()
    with lora.merged(model), pytest.raises(RuntimeError, match="merged in this block"):
        model.blocks[0].attn.load_state_dict(state)
    model.blocks[0].attn.load_state_dict(state)
