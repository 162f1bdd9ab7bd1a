"""run: a checkpoint identifies its run, and is loaded completely or not at all."""

import json
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import gpt2
from test_train import assert_same, contents, go, windows

import minilora as ml
from minilora import lora, methods, ops, optim
from minilora.nn import generators
from minilora.state_dict import fill
from minilora.training import fit as train
from minilora.training import run

pytestmark = pytest.mark.usefixtures("numpy_only")


class Job:
    """A run with an adapter, dropout, a schedule and a loss scale; `change` may change anything."""

    def __init__(self, change=lambda job: None) -> None:
        self.model = gpt2(1, "float32", dropout=0.3)
        config = ml.LoRAConfig(r=2, alpha=6, targets=("q", "down"), dropout=0.4, bias="lora")
        lora.attach(self.model, config, rng=2)
        self.optimizer = optim.AdamW(self.model.trainable_parameters(), 0.02, weight_decay=0.1)
        self.batches, self.steps = windows(), 5
        self.how = {
            "schedule": optim.linear_schedule(0.02, 5, 1), "max_grad_norm": 0.5, "eval_every": 2,
            "held_out": [windows(9)[0], windows(9)[1]], "accumulation_steps": 2,
            "loss_scale": ml.LossScale(2.0**9, 3), "about": {"text": "plays", "seed": 1},
            "save_every": 2, "progress": False,
        }
        change(self)

    def fit(self, path, **how):
        return ml.fit(self.model, self.batches, self.optimizer, self.steps,
                      checkpoint=path, **(self.how | how))

    def state(self) -> dict[str, np.ndarray]:
        """Return all that a run may change, as bytes and flags."""
        scale, parameters = self.how["loss_scale"], self.model.named_parameters()
        others = {
            "t": self.optimizer.t, "lr": self.optimizer.lr,
            "flags": [(n, p.requires_grad, p.grad is None) for n, p in parameters],
            "training": [m.training for _, m in self.model.named_modules()],
            "draws": {n: g.bit_generator.state for n, g in generators(self.model).items()},
            "scale": scale and scale.state_dict(),
        }
        arrays = self.model.state_dict() | self.optimizer.state_dict()
        return arrays | {name: np.array(repr(value)) for name, value in others.items()}


def setting(**how):
    return lambda job: job.how.update(how)


def anew(make):
    """Return a change of the optimizer."""

    def change(job) -> None:
        job.optimizer = make(job.model.trainable_parameters())

    return change


def each(name, value, *modules):
    def change(job) -> None:
        for path, module in job.model.named_modules():
            if path.endswith(modules) and hasattr(module, name):
                setattr(module, name, value)

    return change


def frozen(job) -> None:
    job.model.tok.W.data[0, 0] += 1


def twice_loss(model, batch):
    return train.lm_loss(model, batch) * 2


def rows(batch) -> int:
    return len(batch[1])


def steps(job) -> None:
    job.steps = 6
    job.how["schedule"] = optim.linear_schedule(0.02, 6, 1)


def other_batches(job) -> None:
    job.batches = windows(4)


def a_list(job) -> None:
    job.batches = [windows()[i] for i in range(10)]


def fewer(job) -> None:
    job.model.blocks[0].mlp.down.base.b.requires_grad = False
    job.optimizer = optim.AdamW(job.model.trainable_parameters(), 0.02, weight_decay=0.1)


def freezing(job) -> None:
    job.model.blocks[0].mlp.down.base.b.requires_grad = False


def in_a_list(job) -> None:
    parameters = [*job.model.trainable_parameters().values()]
    job.optimizer = optim.AdamW(parameters, 0.02, weight_decay=0.1)


def recomputing(job) -> None:
    job.model.recompute = True


def table(job) -> None:
    job.model.blocks[1].table = np.arange(3.0)


OTHERS = {  # part of the message -> the change of the run
    "steps: 5 then, 6 now": steps,
    "accumulation_steps: 2 then, 1 now": setting(accumulation_steps=1),
    "max_grad_norm: 0.5 then, None now": setting(max_grad_norm=None),
    "learning rates: up to 0.02, digest .* then, up to 0.03, digest .* now": setting(
        schedule=optim.linear_schedule(0.03, 5, 1)
    ),
    "learning rates: up to 0.02, digest .* then, up to 0.02, digest": setting(schedule=None),
    "optimizer: 'AdamW' then, 'Adam' now": anew(lambda p: optim.Adam(p, 0.02)),
    r"betas of optimizer: \(0.9, 0.999\) then, \(0.9, 0.98\) now": anew(
        lambda p: optim.AdamW(p, 0.02, (0.9, 0.98), weight_decay=0.1)
    ),
    "weight_decay of optimizer: 0.1 then, 0.2 now": anew(
        lambda p: optim.AdamW(p, 0.02, weight_decay=0.2)
    ),
    "decays of optimizer: digest .* then, digest .* now": anew(
        lambda p: optim.AdamW(p, 0.02, weight_decay=0.1, exclude=("*.A",))
    ),
    "loss: 'lm_loss' then, 'twice_loss' now": setting(loss=twice_loss),
    "start of loss_scale: 512 then, 1024 now": setting(loss_scale=ml.LossScale(2.0**10, 3)),
    "patience of loss_scale: 3 then, 4 now": setting(loss_scale=ml.LossScale(2.0**9, 4)),
    "start of loss_scale: 512 then, nothing now": setting(loss_scale=None),
    "held_out: digest .* then, digest .* now": setting(held_out=[windows(9)[0]] * 2),
    "eval_every: 2 then, 3 now": setting(eval_every=3),
    "batches: digest .* then, digest .* now": other_batches,
    "batches: digest .* then, digest .* now:": a_list,
    "frozen weights: digest .* then, digest .* now": frozen,
    "alpha of blocks.0.attn.q.default and of 3 more: 6 then, 7 now": each("alpha", 7.0, "default"),
    "dropout of blocks.0.attn.q.default and of 3 more: 0.4 then, 0 now": each(
        "dropout", 0.0, "default"
    ),
    "rate of blocks.0.drop and of 1 more: 0.3 then, 0.2 now": each("rate", 0.2, "0.drop", "1.drop"),
    "n_heads of blocks.1.attn: 2 then, 4 now": each("n_heads", 4, "1.attn"),
    "eps of blocks.0.ln1: 1e-05 then, 1e-06 now": each("eps", 1e-6, "0.ln1"),
    "weight: 'targets_in' then, 'rows' now": setting(weight=rows),
    r"active of blocks.0.attn.q: \('default'\) then, \(\) now": each("active", (), "0.attn.q"),
    r"b of blocks.0.mlp.down.base: \(8,\) float32, trained then, \(8,\) float32, frozen now": fewer,
    r"b of blocks.0.mlp.down.base: \(8,\) .* then, \(8,\) float32, frozen now": freezing,
    r"0: nothing then, \(8,\) float32, trained now": in_a_list,
    "recompute of model: False then, True now": recomputing,
    "table of blocks.1: nothing then, digest .* now": table,
    "text: 'plays' then, 'kjv' now; seed: 1 then, nothing now": setting(about={"text": "kjv"}),
}


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """Return (checkpoint of a run interrupted after step 2 of 5, result of the complete run)."""
    path = tmp_path_factory.mktemp("runs") / "run.npz"
    before = ml.use("numpy")
    complete = Job()
    history = complete.fit(path.with_name("whole.npz"))
    with pytest.raises(ZeroDivisionError):
        Job().fit(path, progress=lambda line: 1 / (not line.startswith("step 3")), log_every=1)
    assert contents(path)[1]["done"] == 2
    ml.use(before)
    return path.read_bytes(), complete.state() | {"losses": np.array(history.losses)}


@pytest.mark.parametrize("words", OTHERS)
def test_a_run_in_which_anything_differs_is_another_run(words, begun, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(begun[0])
    job = Job(OTHERS[words])
    before = job.state()
    with pytest.raises(ValueError, match=f"(: |; ){words}") as caught:
        job.fit(path)
    assert str(caught.value).startswith(f"{path} is a checkpoint of another run: ")
    assert "resume=False" in str(caught.value)
    assert_same(before, job.state())
    assert path.read_bytes() == begun[0]


class Stream:
    """The ten batches of a run, without a length; one of them may be another batch."""

    def __init__(self, other: int = -1) -> None:
        self.other = other

    def __getitem__(self, i: int):
        assert 0 <= i < 10
        return windows(4 if i == self.other else 0)[i]


@pytest.mark.parametrize("at", [0, 5, 9])
def test_the_first_the_middle_and_the_last_batch_identify_a_run(at, tmp_path):
    job = Job()
    job.batches = Stream()
    job.fit(tmp_path / "run.npz")
    job = Job()
    job.batches = Stream(at)
    with pytest.raises(ValueError, match="another run: batches: digest"):
        job.fit(tmp_path / "run.npz")


def unlike(job) -> None:
    """Change what affects no bit."""
    job.model.tokenizer = object()
    job.how |= {"save_every": 3, "log_every": 1, "progress": lambda line: None}
    job.optimizer.lr = 0.7  # the schedule's count


@pytest.mark.parametrize("change", [lambda job: None, unlike])
def test_settings_that_change_no_bit_may_differ(change, begun, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(begun[0])
    job = Job(change)
    history = job.fit(path)
    assert_same(begun[1], job.state() | {"losses": np.array(history.losses)})


@pytest.mark.parametrize("method, settings", [
    ("lora", {"r": 2, "targets": ("q",), "trainable": ("ln_r",)}), ("full", {}),
])
def test_a_checkpoint_belongs_to_one_setting_of_recompute(
    method, settings, tmp_path
):
    """In DeBERTa the last bits may differ: some gradients are added in another order."""
    path = tmp_path / "run.npz"
    sizes = {"vocab_size": 20, "n_positions": 12, "d_model": 8, "n_layers": 2, "n_heads": 2,
             "position_buckets": 6}

    def fit(recompute, steps=3, **how):
        model = ml.Deberta(ml.DebertaConfig(**sizes), rng=0, recompute=recompute)
        methods.apply(model, method, rng=1, **settings)
        optimizer = optim.AdamW(model.trainable_parameters(), 0.02)
        batches = [(np.arange(20).reshape(2, 10), np.arange(20).reshape(2, 10)[:, ::-1])]
        ml.fit(model, batches, optimizer, steps, checkpoint=path, progress=False, **how)

    for before in (False, True):
        fit(before, resume=False)
        fit(before)
        words = f"another run: recompute of model: {before} then, {not before} now: use the same"
        with pytest.raises(ValueError, match=words):
            fit(not before)


def test_the_mode_of_the_model_is_no_setting_of_a_run(tmp_path):
    """Its steps have dropout in either mode."""
    path, how = tmp_path / "run.npz", {"progress": False, "steps": 2, "checkpoint": "run.npz"}
    states = []
    for mode in (True, False):
        model = gpt2(0, dropout=0.1).train(mode)
        optimizer = optim.SGD(model.trainable_parameters(), 0.1)
        how["checkpoint"] = path.with_stem(str(mode))
        ml.fit(model, windows(), optimizer, **how)
        ml.fit(model.train(not mode), windows(), optimizer, **how)
        states.append(model.state_dict())
    assert all(np.array_equal(states[0][name], a) for name, a in states[1].items())


def test_kernels_library_replaced_ops_and_version_make_another_run(
    begun, tmp_path, monkeypatch
):
    path = tmp_path / "run.npz"
    path.write_bytes(begun[0])
    with ml.plain(), pytest.raises(ValueError, match="plain: False then, True now"):
        Job().fit(path)
    mine = ops.replaced(gelu=lambda x, approximate="tanh": ops.relu(x))
    with mine, pytest.raises(ValueError, match=r"ops replaced: \(\) then, \('gelu'\) now"):
        Job().fit(path)
    with ml.using("numpy") as other:
        other.name = "abacus"
        with pytest.raises(ValueError, match="library: 'numpy' then, 'abacus' now"):
            Job().fit(path)
    monkeypatch.setattr(run, "__version__", "9.9")
    with pytest.raises(ValueError, match=r"minilora: '0\..*' then, '9.9' now"):
        Job().fit(path)


@pytest.mark.parametrize("n", [run.MANY, run.MANY + 1, run.MANY + 4])
def test_the_first_differences_are_listed_and_the_others_counted(n):
    was, now = ({f"m.x{i}": f"{i + add}" for i in range(n)} for add in (0, 1))
    text = [f"x{i} of m: {i} then, {i + 1} now" for i in range(run.MANY)]
    rest = [f"and {n - run.MANY} more"] if n > run.MANY else []
    assert run.differences(was, now) == "; ".join(text + rest)
    assert run.differences(now, now) == ""


def test_an_optimizers_list_in_another_order_is_another_run(tmp_path):
    model = gpt2()
    q, k = model.blocks[0].attn.q.W, model.blocks[0].attn.k.W
    for order in ((q, k), (k, q)):
        how = {"checkpoint": tmp_path / "run.npz", "progress": False}
        if order[0] is k:
            with pytest.raises(ValueError, match=r"trained as 0 then, .* trained as 1 now"):
                ml.fit(model, windows(), optim.SGD(order, 0.1), 1, **how)
        else:
            ml.fit(model, windows(), optim.SGD(order, 0.1), 1, **how)


plain = st.one_of(st.integers(), st.floats(allow_nan=False), st.text(max_size=99), st.booleans(),
                  st.none())
settings_of_all_kinds = st.recursive(
    plain,
    lambda x: st.lists(x, max_size=12) | st.dictionaries(st.text(max_size=4), x, max_size=4),
    max_leaves=14,
)


@given(settings_of_all_kinds, settings_of_all_kinds)
def test_equal_settings_have_equal_texts(a, b):
    text = run.in_words(a)
    assert text == run.in_words(json.loads(json.dumps(a))) and len(text or "") < 9 * run.LONG
    if isinstance(a, int | float | str) and isinstance(b, int | float | str) and a != b:
        assert text != run.in_words(b)


@pytest.mark.parametrize("one, other", [
    (np.arange(4.0), np.arange(4.0).reshape(2, 2)), (np.zeros(2), np.zeros(2, "float32")),
    (np.zeros(2), np.array([0.0, 1e-300])), ([1, np.zeros(2)], [2, np.zeros(2)]),
    ({"a": 1}, {"b": 1}), ({"a", "b"}, {"a", "c"}), (0.1, 0.1 + 1e-16), ((1, 2), (2, 1)),
    (ml.Tensor(np.ones(2)), ml.Tensor(np.zeros(2))), ("x" * 99, "x" * 98),
])
def test_different_settings_have_different_texts(one, other):
    assert run.in_words(one) != run.in_words(other)
    assert run.in_words(one) == run.in_words(one)


def test_the_text_of_a_set_does_not_depend_on_its_order():
    assert run.in_words({0, 8}) == run.in_words({8, 0})
    assert run.in_words([*range(99)]).startswith("digest ")
    assert run.in_words([1.0, 2]) == run.in_words((1, 2.0)) == "(1, 2)"


def test_objects_have_no_text():
    for value in (gpt2(), gpt2().tok.W, windows, object(), np.random.default_rng(0), {"a": gpt2()}):
        assert run.in_words(value) is None
    assert (
        run.in_words(np.float32(0.5)) == run.in_words(0.5) == "0.5"
        and run.in_words(2.0) == run.in_words(2) == "2"
    )


def test_about_takes_no_objects(tmp_path):
    with pytest.raises(TypeError, match=r"fit: about\['model'\] must be a number.*, not a GPT2"):
        Job().fit(tmp_path / "run.npz", about={"model": gpt2()})


# A damaged file.


def member(name, change):
    def damage(arrays, meta) -> None:
        arrays[name] = change(arrays[name])

    return damage


def fact(name, value):
    def damage(arrays, meta) -> None:
        meta[name] = value

    return damage


def at(array, value):
    array = array.copy()
    array.reshape(-1)[0] = value
    return array


def reached(arrays, meta, done: int, evaluations: int) -> None:
    """Pretend that `done` steps are done."""
    meta["done"] = done
    meta["t"] = max(done, meta["t"]) if done else -1
    arrays |= {name: np.ones(done) for name in ("losses", "lrs")}
    arrays["held_out"] = np.ones(evaluations)


A = "param.blocks.0.attn.q.default.A"
DAMAGES = {
    "missing member": lambda arrays, meta: arrays.pop(A),
    "missing moment": lambda arrays, meta: arrays.pop(A.replace("param", "optim") + ".v"),
    "missing history": lambda arrays, meta: arrays.pop("losses"),
    "unknown member": lambda arrays, meta: arrays.update(other=np.zeros(2)),
    "shape": member(A, lambda a: a.T),
    "a broadcast shape": member(A, lambda a: a[:1]),
    "long losses": member("losses", lambda a: np.append(a, 1.0)),
    "short lrs": member("lrs", lambda a: a[:-1]),
    "long held_out": member("held_out", lambda a: np.append(a, 1.0)),
    "no held_out": member("held_out", lambda a: a[:0]),
    "wide parameter": member(A, lambda a: a.astype("float64")),
    "integer losses": member("losses", lambda a: a.astype("int64")),
    "nan parameter": member(A, lambda a: at(a, np.nan)),
    "infinite parameter": member(A, lambda a: at(a, np.inf)),
    "nan loss": member("losses", lambda a: at(a, np.nan)),
    "nan held out": member("held_out", lambda a: at(a, np.nan)),
    "negative scale": member("loss_scale", lambda a: at(a, -1.0)),
    "scale unchanged too long": member("loss_scale", lambda a: np.array([a[0], 3.0])),
    "scale unchanged for half an update": member("loss_scale", lambda a: np.array([a[0], 0.5])),
    "no scale": member("loss_scale", lambda a: a[:0]),
    "less done": fact("done", 1),
    "no steps done": lambda arrays, meta: reached(arrays, meta, 0, 0),
    "done before the start": fact("done", -1),
    "done beyond the end": lambda arrays, meta: reached(arrays, meta, 6, 4),
    "a missing evaluation": lambda arrays, meta: reached(arrays, meta, 3, 1),
    "a number of forty digits": fact("done", 10**40),
    "done in words": fact("done", "two"),
    "half done": fact("done", 2.0),
    "fewer updates than steps": fact("t", 1),
    "t in words": fact("t", "2"),
    "no t": lambda arrays, meta: meta.pop("t"),
    "no run": lambda arrays, meta: meta.pop("what"),
    "a list of a run": fact("what", ["steps"]),
    "numbers of a run": lambda arrays, meta: meta["what"].update(steps=5),
    "lists of a run": lambda arrays, meta: meta["what"].update(steps=[5]),
    "no generators": fact("generators", {}),
    "a generator too many": lambda arrays, meta: meta["generators"].update(other={}),
    "a generator of another name": lambda arrays, meta: meta["generators"].update(
        other=meta["generators"].pop("drop")
    ),
    "a generator without state": lambda arrays, meta: meta["generators"].update(drop=None),
    "another kind of generator": lambda arrays, meta: meta["generators"]["drop"].update(
        bit_generator="MT19937"
    ),
    "negative state": lambda arrays, meta: meta["generators"]["drop"]["state"].update(state=-1),
    "a state too large": lambda arrays, meta: meta["generators"]["drop"]["state"].update(
        state=2**200
    ),
    "a broken state": lambda arrays, meta: meta["generators"]["drop"]["state"].update(state=1.5),
    "half a state": lambda arrays, meta: meta["generators"]["drop"]["state"].pop("inc"),
    "no list of generators": fact("generators", []),
    "another kind of file": fact("kind", "model"),
}


def write(path, arrays, meta) -> None:
    """Write a file as `checkpoint.write` does, without its checks."""
    text = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(path, **{"meta.json": text}, **{n: np.ascontiguousarray(a) for n, a in arrays.items()})


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_file_is_refused_by_name_and_changes_nothing(damage, begun, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(begun[0])
    arrays, meta = contents(path)
    DAMAGES[damage](arrays, meta)
    write(path, arrays, meta)
    job, damaged = Job(), path.read_bytes()
    before = job.state()
    with pytest.raises(ValueError) as caught:
        job.fit(path)
    assert str(caught.value).startswith(str(path))
    if "another" not in damage:
        assert "another run" not in str(caught.value)
    if "done b" in damage:
        assert "of 5 steps done, after" in str(caught.value)
    assert_same(before, job.state())
    assert path.read_bytes() == damaged
    path.write_bytes(begun[0])  # the intact file is loaded afterwards
    history = job.fit(path)
    assert_same(begun[1], job.state() | {"losses": np.array(history.losses)})


def test_an_interrupt_at_any_line_of_the_loading_changes_nothing(begun, tmp_path):
    path = tmp_path / "run.npz"
    path.write_bytes(begun[0])
    settings, left = contents(path)[1]["what"], 0

    def trace(frame, event, _):
        nonlocal left
        mine = frame.f_code in (run.Run.load.__code__, fill.__code__)
        if mine and event == "return" and frame.f_code is fill.__code__:
            left = min(left, 0)  # loading is complete: later interrupts are no failure
        elif mine and event == "line" and left:
            left -= 1
            if left == 0:
                raise KeyboardInterrupt
        return trace if mine else None

    def load(job, lines: int) -> bool:
        """Interrupt the loading after `lines` lines; return whether it was still running."""
        nonlocal left
        left, scale = lines, job.how["loss_scale"]
        sys.settrace(trace)
        try:
            run.Run(job.model, job.optimizer, scale, 5, [0, 2, 4, 5]).load(path, settings)
        except KeyboardInterrupt:
            return True
        finally:
            sys.settrace(None)
        return False

    job = Job()
    before = job.state()
    last = next(n for n in range(100, 10_000, 25) if not load(Job(), n))
    for lines in range(1, last, 7):
        if not load(job, lines):
            break
        assert_same(before, job.state())
    assert lines > last - 25


@pytest.mark.parametrize("kind", ["PCG64", "MT19937", "Philox", "SFC64", "PCG64DXSM"])
def test_every_numpy_generator_resumes_from_json(kind):
    draws = np.random.Generator(getattr(np.random, kind)(3))
    draws.standard_normal(7), draws.integers(0, 9, 3, "uint8")
    state = json.loads(json.dumps(run._state(draws)))
    other = np.random.Generator(getattr(np.random, kind)(4))
    assert run._fits(other, state) and run._state(other) != state
    other.bit_generator.state = state
    assert np.array_equal(other.integers(0, 9, 99), draws.integers(0, 9, 99))


def test_the_json_of_a_checkpoint_contains_no_history(tmp_path):
    """Its size does not depend on the length of the run."""
    sizes = []
    for steps in (5, 60):
        path = tmp_path / f"{steps}.npz"
        go("plain SGD", windows(batch=1, tokens=2), path, steps=steps, eval_every=1)
        arrays, meta = contents(path)
        assert len(arrays["losses"]) == len(arrays["lrs"]) == len(arrays["held_out"]) - 1 == steps
        sizes.append(len(json.dumps(meta)))
    assert abs(sizes[0] - sizes[1]) < 20
