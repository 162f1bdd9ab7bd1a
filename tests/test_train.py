"""train: one loop that learns, averages, clips, logs, and resumes after a kill at any step."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import THOROUGH, kept
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import gpt2, ids, normal, seeds, unfelt

import minilora as ml
from minilora import lora, nn, ops, optim
from minilora.data import Windows
from minilora.files import checkpoint
from minilora.nn import evaluating, generators
from minilora.training import fit as train

STREAM = ids(0, 1, 200)[0]


class Killed(Exception):
    """Raised in place of a power cut."""


def windows(seed: int = 0, batch: int = 2, tokens: int = 6) -> Windows:
    return Windows(STREAM, batch, tokens, seed)


def job(kind: str):
    """Return (model, optimizer) of a run; equal for every call."""
    dtype = "float16" if kind == "half" else "float32"
    model = gpt2(1, dtype, dropout=0.0 if kind in ("full", "plain SGD") else 0.3)
    if "lora" in kind:
        bias = "all" if "bias" in kind else "none"
        config = ml.LoRAConfig(r=2, alpha=6, targets=("q", "down"), dropout=0.4, bias=bias)
        lora.attach(model, config, rng=2)
    parameters = model.trainable_parameters()
    if "SGD" in kind:
        return model, optim.SGD(parameters, 0.1, momentum=0.0 if "plain" in kind else 0.9)
    return model, (optim.Adam if "bias" in kind else optim.AdamW)(parameters, lr=0.02)


KINDS = ["full", "full with dropout", "half", "lora", "lora with bias", "SGD", "plain SGD"]


def outcome(model, optimizer, history) -> dict:
    """Return everything that a run produces and changes."""
    return {
        **{f"p {n}": a for n, a in model.state_dict().items()},
        **{f"o {n}": a for n, a in optimizer.state_dict().items()},
        **{f"h {n}": np.array(v) for n, v in dataclasses.asdict(history).items()},
        "lr": np.array(optimizer.lr),
        **{
            f"g {n}": np.array(repr(g.bit_generator.state))
            for n, g in generators(model).items()
        },
    }


def contents(path) -> tuple[dict[str, np.ndarray], dict]:
    """Return (arrays, meta) of a file."""
    with np.load(path) as file:
        arrays = {name: file[name] for name in file.files}
    return arrays, json.loads(arrays.pop("meta.json").tobytes())


def assert_same(a: dict, b: dict) -> None:
    assert a.keys() == b.keys()
    for name in a:
        assert a[name].dtype == b[name].dtype and np.array_equal(a[name], b[name]), name


def go(kind, batches, path=None, steps=5, seen=None, **how):
    model, optimizer = job(kind)
    how = {
        "schedule": optim.linear_schedule(0.02, steps, 1), "max_grad_norm": 0.5, "eval_every": 2,
        "held_out": [windows(9)[0]], "progress": False, "log_every": 3,
        **({} if path is None else {"save_every": 2}), **how,
    }
    history = ml.fit(model, batches, optimizer, steps, checkpoint=path, **how)
    return outcome(model, optimizer, history)


class KilledAt:
    """Batches that raise when `last` is requested, after the three that identify a run."""

    def __init__(self, batches, last: int) -> None:
        self.batches, self.last, self.asked = batches, last, 0

    def __getitem__(self, i: int):
        self.asked += 1
        if i >= self.last and self.asked > 3:
            raise Killed
        return self.batches[i]


@pytest.mark.parametrize("kind", kept(KINDS, "full with dropout", "half", "lora with bias"))
def test_a_run_killed_at_any_step_ends_with_the_same_bits(kind, tmp_path, backend):
    if backend.name == "strict" and "dropout" not in kind:
        pytest.skip("on the stand-in, the one that draws the most")
    expected = go(kind, windows(), tmp_path / "whole.npz", accumulation_steps=2)
    assert_same(
        expected, go(kind, windows(), accumulation_steps=2)
    )  # writing checkpoints changes nothing
    for k in range(10) if backend.name == "numpy" and THOROUGH else (3, 6, 9):
        path = tmp_path / f"{k}.npz"
        with pytest.raises(Killed):
            go(kind, KilledAt(windows(), k), path, accumulation_steps=2)
        assert path.exists() == (k >= 4)
        assert_same(expected, go(kind, windows(), path, accumulation_steps=2))


@settings(max_examples=10)
@given(st.integers(1, 5), st.lists(st.integers(0, 6), max_size=4), st.sampled_from(KINDS))
def test_a_run_killed_again_and_again_ends_with_the_same_bits(
    tmp_path_factory, save_every, kills, kind
):
    path = tmp_path_factory.mktemp("runs") / "run.npz"
    how = {"steps": 6}
    for k in kills:
        try:
            go(kind, KilledAt(windows(), k), path, save_every=save_every, **how)
        except Killed:
            continue
    assert_same(
        go(kind, windows(), path, save_every=save_every, **how), go(kind, windows(), **how)
    )


def test_a_run_killed_while_it_prints_or_writes_loses_only_unsaved_steps(tmp_path):
    expected, path = go("lora", windows()), tmp_path / "run.npz"

    def dies(line: str) -> None:
        if line.startswith("step 4"):
            raise Killed

    with pytest.raises(Killed):
        go("lora", windows(), path, progress=dies, log_every=1)
    assert contents(path)[1]["done"] == 2
    with pytest.MonkeyPatch.context() as patch:

        def cut(handle: int) -> None:
            raise Killed

        patch.setattr(checkpoint.os, "fsync", cut)
        with pytest.raises(Killed):
            go("lora", windows(), path)
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    assert contents(path)[1]["done"] == 2
    lines = []
    (tmp_path / "old").hardlink_to(path)
    before = path.read_bytes()
    assert_same(expected, go("lora", windows(), path, progress=lines.append))
    assert (tmp_path / "old").read_bytes() == before, "it is replaced, not rewritten"
    assert lines[0] == f"continuing from step 2 ({path})"


SCRIPT = """
import functools, os, signal, sys
import minilora as ml
import strict
ml.use(strict.named(sys.argv[1]))
import test_train as t
place, number, path = sys.argv[2], getattr(signal, sys.argv[3], signal.SIGTERM), sys.argv[4]
class Dies:
    times = 0
    def __getitem__(self, i):
        self.times += 1
        if place == "batch" and i == 3 and self.times > 3:
            os.kill(os.getpid(), number)
        return t.windows()[i]
def dying(call, last):
    @functools.wraps(call)
    def wrapped(*args, **kwargs):
        wrapped.times += 1
        if wrapped.times == last:
            os.kill(os.getpid(), number)
        return call(*args, **kwargs)
    wrapped.times = 0
    return wrapped
if place == "write":
    os.replace = dying(os.replace, 2)
loss = dying(t.train.lm_loss, 5) if place == "loss" else t.train.lm_loss
t.go("lora", Dies(), path, progress=print, loss=loss)
"""
KILLS = [("batch", "SIGKILL", 2), ("write", "SIGKILL", 2), ("loss", "SIGTERM", 3),
         ("write", "SIGTERM", 4)]


@pytest.mark.parametrize(("place", "name", "done"), kept(KILLS, KILLS[3]))
def test_a_process_that_is_killed_resumes_from_its_checkpoint(
    place, name, done, tmp_path, backend, numpy_first
):
    if name == "SIGTERM" and os.name != "posix":
        pytest.skip("there it is a kill")
    path, here = tmp_path / "run.npz", Path(__file__).parent
    where = os.pathsep.join([str(here), str(here.parent), os.environ.get("PYTHONPATH", "")])
    died = subprocess.run(
        [sys.executable, "-c", SCRIPT, backend.name, place, name, str(path)],
        env={**os.environ, "PYTHONPATH": where}, capture_output=True, timeout=900, text=True,
    )
    if name == "SIGTERM":
        assert died.returncode == 143, died.stderr
        assert died.stdout.splitlines()[-1] == (
            f"fit: interrupted after {done} of 5 steps: {path} has the run's state, and the same "
            "call continues it"
        )
        assert died.stderr == "" and [p.name for p in tmp_path.iterdir()] == ["run.npz"]
    assert died.returncode not in (0, 1), died.stderr
    assert contents(path)[1]["done"] == done
    how = {"loss": train.lm_loss}
    assert_same(go("lora", windows(), **how), go("lora", windows(), path, **how))
    assert [p.name for p in tmp_path.iterdir()] == ["run.npz"]


# Signals during the work: at the n-th call of any function that fit calls.


class Signals:
    """The functions that fit calls; each call may raise a signal."""

    def __init__(self, number: int, place: str, at: int) -> None:
        self.number, self.place, self.left = number, place, at

    def call(self, place: str) -> None:
        self.left -= place == self.place
        if self.left == 0 and place == self.place:
            self.left = -1
            signal.raise_signal(self.number)

    def __getitem__(self, i: int):
        self.call("batch")
        return windows()[i]

    def loss(self, model, batch):
        self.call("loss" if ml.tensor.recording() else "held-out loss")
        return train.lm_loss(model, batch)

    def lr(self, step: int) -> float:
        return optim.linear_schedule(0.02, 5, 1)(step)

    def say(self, line: str) -> None:
        self.call("progress")

    def how(self) -> dict:
        return {
            "progress": self.say, "loss": self.loss, "schedule": self.lr, "log_every": 1,
            "accumulation_steps": 2, "held_out": [windows(9)[i] for i in range(3)],
        }


PLACES = {"batch": (4, 5, 13), "loss": (1, 2, 5, 10), "held-out loss": (1, 3, 4, 8, 12),
          "progress": (1, 3, 5)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_call_is_saved_and_the_run_ends_with_the_same_bits(
    number, place, tmp_path, backend
):
    if backend.name != "numpy":
        pytest.skip("tests the loop alone")
    before = handlers()
    expected = go("lora", Signals(number, "", 0), **Signals(number, "", 0).how())
    for at in PLACES[place] if number == signal.SIGINT else PLACES[place][-2:-1]:
        path, come = tmp_path / f"{at}.npz", Signals(number, place, at)
        lines, come.say = [], come.say
        how = come.how() | {"progress": lambda line, s=lines, c=come: (s.append(line), c.say(line))}
        error = KeyboardInterrupt if number == signal.SIGINT else SystemExit
        with pytest.raises(error) as stopped:
            go("lora", come, path, **how)
        done = contents(path)[1]["done"]
        message = str(stopped.value) if number == signal.SIGINT else lines[-1]
        when = f"after {done} of 5 steps" if done else "before the first step"
        assert message == (
            f"fit: interrupted {when}: {path} has the run's state, and the same call continues it"
        )
        if number == signal.SIGTERM:
            assert stopped.value.code == 143
        assert come.left < 0 and handlers() == before
        steps = {"batch": (at - 2) // 2, "loss": (at + 1) // 2, "progress": at}
        looked = [0, 0, 0, 2, 2, 2, 4, 4, 4, 5, 5, 5]
        assert done == (looked[at - 1] if place == "held-out loss" else steps[place])
        if done < 5:
            assert not np.array_equal(contents(path)[0]["losses"], expected["h losses"])
        assert_same(expected, go("lora", come, path, **come.how()))


def handlers():
    return [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]


def test_evaluation_stops_after_the_current_batch_on_a_signal(tmp_path):
    come = Signals(signal.SIGINT, "held-out loss", 4)
    asked = []
    come.call, call = lambda place: (asked.append(place), call(place)), come.call
    with pytest.raises(KeyboardInterrupt):
        go("lora", come, tmp_path / "run.npz", **come.how())
    assert asked.count("held-out loss") == 4


def test_the_same_call_on_the_same_objects_resumes(tmp_path):
    """As in a notebook, where the interrupted model still exists."""
    expected, come = go("lora", windows()), Signals(signal.SIGINT, "progress", 3)
    model, optimizer = job("lora")
    how = {
        "schedule": optim.linear_schedule(0.02, 5, 1), "max_grad_norm": 0.5, "eval_every": 2,
        "held_out": [windows(9)[0]], "save_every": 100, "log_every": 1, "progress": come.say,
        "checkpoint": tmp_path / "run.npz", "loss_scale": None,
    }
    with pytest.raises(KeyboardInterrupt, match="after 3 of 5 steps"):
        ml.fit(model, windows(), optimizer, 5, **how)
    history = ml.fit(model, windows(), optimizer, 5, **how)
    assert_same(expected, outcome(model, optimizer, history))


def test_a_second_interrupt_is_immediate_and_so_is_any_without_a_checkpoint(tmp_path):
    for path, times in ((tmp_path / "run.npz", 2), (None, 1)):
        come, seen = Signals(signal.SIGINT, "", 0), []

        def loss(model, batch, times=times, seen=seen):
            for _ in range(times):
                signal.raise_signal(signal.SIGINT)
                seen.append(1)
            return train.lm_loss(model, batch)

        with pytest.raises(KeyboardInterrupt) as stopped:
            go("lora", come, path, loss=loss, held_out=None, eval_every=0)
        assert len(seen) == times - 1 and str(stopped.value) == ""
    assert not (tmp_path / "run.npz").exists()


def test_an_error_in_the_current_step_does_not_swallow_a_signal(tmp_path):
    def loss(model, batch):
        signal.raise_signal(signal.SIGINT)
        raise Killed

    before = handlers()
    with pytest.raises(KeyboardInterrupt):
        go("lora", windows(), tmp_path / "run.npz", loss=loss, held_out=None, eval_every=0)
    assert handlers() == before


def test_a_finished_run_is_returned_without_training(tmp_path):
    path = tmp_path / "run.npz"
    expected = go("lora", windows(), path)
    assert_same(expected, go("lora", KilledAt(windows(), 0), path))


def test_resume_false_starts_again(tmp_path):
    path = tmp_path / "run.npz"
    go("full", windows(5), path)
    assert_same(go("full", windows(), path, resume=False), go("full", windows()))


@pytest.mark.parametrize("sizes", [{"n_positions": 13}, {"d_ff": 5}, {"vocab_size": 12}])
def test_a_checkpoint_of_a_model_of_other_sizes_raises_and_changes_nothing(sizes, tmp_path):
    path, how = tmp_path / "run.npz", {"checkpoint": tmp_path / "run.npz", "progress": False}
    one, two = gpt2(), gpt2(1, **sizes)
    ml.fit(one, windows(), optim.SGD(one.trainable_parameters(), 0.1), 1, **how)
    optimizer = optim.SGD(two.trainable_parameters(), 0.1)
    before = outcome(two, optimizer, ml.History())
    with pytest.raises(ValueError, match=f"{path.name} is a checkpoint of another run"):
        ml.fit(two, windows(), optimizer, 1, **how)
    assert_same(before, outcome(two, optimizer, ml.History()))


def test_a_file_of_another_kind_raises(tmp_path):
    path = ml.save_model(gpt2(), tmp_path / "model.npz")
    with pytest.raises(ValueError, match="holds a model, not a run"):
        go("full", windows(), path)


def test_the_frozen_weights_are_not_in_the_checkpoint(tmp_path):
    path = tmp_path / "run.npz"
    model = ml.GPT2(ml.GPT2Config(500, 32, 64, 2, 2), rng=0)
    lora.attach(model, ml.LoRAConfig(r=2, alpha=4), rng=0)
    optimizer = optim.AdamW(model.trainable_parameters())
    ml.fit(model, windows(), optimizer, 2, checkpoint=path, progress=False)
    arrays, _ = contents(path)
    trained = set(model.trainable_parameters())
    assert {n for n in arrays if n.startswith("param.")} == {f"param.{n}" for n in trained}
    assert {n for n in arrays if n.startswith("optim.")} == {
        f"optim.{n}.{s}" for n in trained for s in "mv"
    }
    counted = ml.accounting.count(model)
    share = 3 * 4 * counted.trainable  # A and B and their two moments, 4 bytes each
    names = 400 * len(arrays)  # the two headers of an array in a .npz
    assert share < path.stat().st_size < share + names + 10_000 < 4 * counted.frozen


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("numpy_first")
def test_one_seed_is_one_run_and_only_what_trains_changes(kind):
    assert_same(go(kind, windows()), go(kind, windows()))
    before, trained = job(kind)[0].state_dict(), set(job(kind)[0].trainable_parameters())
    after = go(kind, windows(), held_out=None, eval_every=0)
    for name, array in before.items():
        if name not in unfelt(trained):
            assert np.array_equal(array, after[f"p {name}"]) == (name not in trained), name


@pytest.mark.parametrize(("kind", "share"), [("full", 0.5), ("lora", 0.8)])
def test_the_loss_falls_on_a_text_that_can_be_learned(kind, share):
    model, optimizer = job(kind)
    for _, module in model.named_modules():
        for name in ("rate", "dropout"):
            if hasattr(module, name):
                setattr(module, name, 0.0)
    batches = Windows(np.arange(300) % 7, 4, 8)
    history = ml.fit(model, batches, optimizer, 60, progress=False)
    assert len(history.losses) == 60
    assert np.mean(history.losses[-5:]) < share * history.losses[0]
    assert ml.evaluate(model, [batches[99]]) < share * history.losses[0]


def test_each_step_equals_a_textbook_loop():
    model, optimizer = job("full with dropout")
    twin, own = job("full with dropout")
    lr = optim.cosine_schedule(0.03, 4, 1)
    history = ml.fit(model, windows(), optimizer, 4, schedule=lr, max_grad_norm=0.3, progress=False)
    losses = []
    for step in range(4):
        own.lr = lr(step)
        inputs, targets = windows()[step]
        loss = ops.cross_entropy(twin(inputs), targets)
        own.zero_grad()
        loss.backward()
        optim.clip_grad_norm(own.parameters, 0.3)
        own.step()
        losses.append(loss.item())
    assert_same(
        outcome(model, optimizer, history),
        outcome(twin, own, ml.History(losses, [lr(i) for i in range(4)])),
    )
    assert all(p.grad is None for p in model.parameters()), "nothing is left behind"


@given(seeds, st.integers(1, 3), st.sampled_from([None, 0.3]), st.booleans())
def test_a_step_is_one_update_from_the_mean_gradient(seed, k, norm, scaled):
    model, twin = gpt2(seed), gpt2(seed)
    ours, own = (optim.SGD(m.trainable_parameters(), 0.5) for m in (model, twin))
    batches = [(ids(seed + i), ids(seed + 9 + i)) for i in range(k)]
    train.train_step(model, [batches[0]], ours)
    model.load_state_dict(twin.state_dict())  # the gradients left by a step do not count
    scale = ml.LossScale(2.0**7) if scaled else None
    loss = ml.train_step(model, batches, ours, max_grad_norm=norm, loss_scale=scale)
    losses = [train.lm_loss(twin, batch) for batch in batches]
    mean = sum(losses, ml.Tensor(0.0)) * (1 / k)
    mean.backward()
    if norm:
        optim.clip_grad_norm(own.parameters, norm)
    own.step()
    assert loss.shape == () and float(loss) == pytest.approx(mean.item(), rel=1e-14)
    for name, array in twin.state_dict().items():
        np.testing.assert_allclose(model.state_dict()[name], array, rtol=1e-12, atol=1e-13)


@settings(max_examples=15)
@given(seeds, st.integers(2, 5), st.integers(1, 3))
def test_k_micro_batches_are_one_batch_k_times_as_big(seed, k, batch):
    parts = [(ids(seed + i, batch), ids(seed + k + i, batch)) for i in range(k)]
    joined = tuple(np.concatenate(x) for x in zip(*parts))
    names = [n for n, _ in gpt2(seed).named_parameters()]

    def gradients(batches, accumulate):
        model = gpt2(seed)
        before = model.state_dict()
        optimizer = optim.SGD(model.trainable_parameters(), 1.0)
        history = ml.fit(
            model, batches, optimizer, 1, accumulation_steps=accumulate, progress=False
        )
        after = model.state_dict()
        return history.losses[0], {n: before[n] - after[n] for n in names}

    (loss, one), (small, summed) = gradients([joined], 1), gradients(parts, k)
    each = [gradients([part], 1)[1] for part in parts]
    eps, rows = np.finfo("float64").eps, k * batch * 7
    assert abs(loss - small) <= 10 * rows * eps * loss
    for name in names:
        # another order of summation: `rows` roundings of terms as large as the parts', and p - g
        size = sum(np.linalg.norm(g[name]) for g in each) + np.linalg.norm(summed[name] + 1)
        assert np.linalg.norm(one[name] - summed[name]) <= 10 * rows * eps * size, name


@st.composite
def splits(draw):
    """(batch, its rows in parts of any sizes): any targets masked, in whole parts too, but one."""
    rows, tokens = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    seed = draw(seeds)
    inputs, targets = ids(seed, rows, tokens), ids(seed + 1, rows, tokens)
    mask = np.random.default_rng(seed).random((rows, tokens)) < draw(st.sampled_from([0, 0.5, 0.9]))
    mask[draw(st.lists(st.integers(0, rows - 1), max_size=2))] = True
    mask[draw(st.integers(0, rows - 1)), draw(st.integers(0, tokens - 1))] = False
    targets[mask] = -100
    cuts = sorted(draw(st.sets(st.integers(1, max(1, rows - 1)), max_size=rows - 1)))
    return (inputs, targets), list(zip(np.split(inputs, cuts), np.split(targets, cuts)))


class Gradients(optim.SGD):
    """Keeps the gradients of its last step."""

    def update(self, name, p, g, *state):
        self.seen[name] = ml.asnumpy(g).astype("float64")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16"])
@settings(max_examples=15)
@given(splits(), st.booleans())
def test_a_split_of_a_batch_changes_neither_loss_nor_gradient(dtype, split, scaled):
    whole, parts = split

    def step(batches, accumulate=False):
        model = gpt2(3, dtype, dropout=0.5)  # which `evaluate` switches off
        loss = ml.evaluate(model, batches)
        for _, module in model.named_modules():
            if isinstance(module, nn.Dropout):
                module.rate = 0.0
        optimizer = Gradients(model.trainable_parameters(), 1.0)
        optimizer.seen = {}
        how = {"loss_scale": ml.LossScale(2.0**6) if scaled or dtype == "float16" else None}
        if accumulate:
            trained = ml.fit(model, batches, optimizer, 1, accumulation_steps=len(batches),
                             progress=False, **how).losses[0]
        else:
            trained = float(ml.train_step(model, batches, optimizer, **how))
        return loss, trained, optimizer.seen

    (loss, trained, one), (apart, summed, many) = step([whole]), step(parts)
    eps, numbers = float(np.finfo(dtype).eps), whole[1].size * 11
    wide = max(eps, float(np.finfo("float32").eps)) if dtype != "float64" else eps
    assert abs(loss - trained) <= 10 * numbers * wide * loss
    assert abs(loss - apart) <= 10 * numbers * wide * loss
    assert abs(trained - summed) <= 10 * numbers * wide * loss
    assert step(parts, accumulate=True)[1] == summed
    for name in one:
        # each part is rounded alone: `eps` of terms no larger than a gain times a gradient
        size = max(np.abs(g[name]).max() for g in (one, many)) + 0.1
        assert np.abs(one[name] - many[name]).max() <= 20 * eps * size, name


def test_the_weight_is_the_number_that_cross_entropy_averages_over():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        targets = rng.integers(0, 11, (3, 4))
        targets[rng.random((3, 4)) < 0.5] = -100
        targets[0, 0] = 1
        logits = ml.Tensor(normal(seed, 3, 4, 11), requires_grad=True)
        loss = ops.cross_entropy(logits, targets)
        total = -sum(
            ops.log_softmax(logits).data[i, j, targets[i, j]]
            for i, j in zip(*np.nonzero(targets != -100))
        )
        counted = train.targets_in((None, targets))
        assert loss.item() == pytest.approx(float(total) / counted, rel=1e-12)
        assert train.targets_in((None, targets.tolist())) == counted
        assert train.targets_in((None, ml.backend.asarray(targets))) == counted
    reals = np.full((3, 2), -100.0)
    assert train.targets_in((None, reals)) == 6 == train.targets_in((None, ml.Tensor(reals)))
    assert train.targets_in((None, [1, -100, 2])) == 2 and train.targets_in((None, [True])) == 1


def test_a_loss_of_its_own_is_weighted_by_its_own_number():
    """The mean over rows of a sum over tokens: as one batch or in parts."""
    def loss(model, batch):
        logits, targets = model(batch[0]), batch[1]
        return ops.cross_entropy(logits, targets, ignore_index=0) * (targets.size / len(targets))

    model = gpt2(1)
    one, two, three = ((ids(i, 2 + i, 3), ids(9 + i, 2 + i, 3) % 10 + 1) for i in range(3))
    joined = tuple(np.concatenate(pair) for pair in zip(one, two, three))
    rows = {"loss": loss, "weight": lambda batch: len(batch[1])}
    whole = ml.evaluate(model, [joined], **rows)
    assert ml.evaluate(model, [one, two, three], **rows) == pytest.approx(whole, rel=1e-13)
    losses = []
    for batches in ([joined], [one, two, three]):
        twin = gpt2(1)
        losses += [ml.train_step(twin, batches, optim.SGD(twin.trainable_parameters(), 1), **rows)]
    assert [float(x) for x in losses] == pytest.approx([whole] * 2, rel=1e-13)
    for bad in (-1, float("nan"), "2", None):
        with pytest.raises(ValueError, match="a batch: its weight must be finite and not negative"):
            ml.evaluate(model, [one], weight=lambda batch, bad=bad: bad)


def test_batches_without_a_target_weigh_nothing_and_alone_are_refused_by_step():
    inputs, targets = windows()[0]
    full, masked = (inputs, targets), (inputs, np.full_like(targets, -100))
    model, optimizer = job("full")
    assert ml.evaluate(model, [masked, full]) == ml.evaluate(model, [full])
    words = r"all targets are masked \(-100\), so there is nothing to average"
    with pytest.raises(ValueError, match=f"evaluate: {words}"):
        ml.evaluate(model, [masked, masked])
    with pytest.raises(ValueError, match=f"train_step: {words}"):
        ml.train_step(model, [masked], optimizer)
    assert optimizer.t == 0
    with pytest.raises(ValueError, match=f"fit: held_out: {words}"):
        ml.fit(model, [full], optimizer, 3, held_out=[masked], progress=False)
    assert optimizer.t == 0
    with pytest.raises(ValueError, match=f"fit: step 1: train_step: {words}"):
        ml.fit(model, [full, masked], optimizer, 3, progress=False)
    assert optimizer.t == 1
    history = ml.fit(model, [full, masked], optimizer, 2, accumulation_steps=2, progress=False,
                     held_out=[masked, full])
    assert len(history.losses) == 2 and len(history.held_out) == 2


def test_an_interrupt_is_answered_though_the_first_held_out_batch_is_masked(tmp_path):
    def loss(model, batch):
        if ml.tensor.recording():
            signal.raise_signal(signal.SIGINT)
        return train.lm_loss(model, batch)

    inputs, targets = windows()[0]
    held_out = [(inputs, np.full_like(targets, -100)), (inputs, targets)]
    with pytest.raises(KeyboardInterrupt, match="after 1 of 5 steps"):
        go("lora", windows(), tmp_path / "run.npz", loss=loss, held_out=held_out, eval_every=1)


@settings(max_examples=10)
@given(seeds, st.sampled_from([0.01, 0.1, 100.0]))
def test_clipping_bounds_the_step(seed, clip):
    model = gpt2(seed)
    before = model.state_dict()
    ml.fit(model, windows(seed), optim.SGD(model.trainable_parameters(), 1.0), 1,
           max_grad_norm=clip, progress=False)
    moved = np.sqrt(sum(((a - before[n]) ** 2).sum() for n, a in model.state_dict().items()))
    assert moved <= clip * (1 + 1e-9)
    assert clip > 50 or moved > clip * (1 - 1e-9), "and it is not smaller than it has to be"


def test_the_schedule_sets_each_step_and_without_one_the_optimizers_lr_is_used():
    history = ml.fit(*with_batches("full"), 4, schedule=lambda i: 0.1 / (i + 1), progress=False)
    assert history.lrs == [0.1 / (i + 1) for i in range(4)]
    assert ml.fit(*with_batches("full"), 3, progress=False).lrs == [0.02] * 3


def with_batches(kind):
    model, optimizer = job(kind)
    return model, windows(), optimizer


def test_held_out_is_evaluated_at_the_start_every_n_steps_and_at_the_end():
    held_out = [windows(9)[0], windows(9)[1]]
    model, batches, optimizer = with_batches("full with dropout")
    first = ml.evaluate(model, held_out)
    history = ml.fit(model, batches, optimizer, 5, held_out=held_out, eval_every=2, progress=False)
    assert [at for at, _ in history.held_out] == [0, 2, 4, 5]
    assert history.held_out[0][1] == first
    assert history.held_out[-1][1] == ml.evaluate(model, held_out)
    twin = ml.fit(*with_batches("full with dropout"), 5, progress=False)
    assert twin.losses == history.losses, "looking changes nothing"
    assert twin.held_out == []
    only_ends = ml.fit(*with_batches("full"), 4, held_out=held_out, progress=False).held_out
    assert [at for at, _ in only_ends] == [0, 4]
    even = ml.fit(*with_batches("full"), 4, held_out=held_out, eval_every=2, progress=False)
    assert [at for at, _ in even.held_out] == [0, 2, 4]


def test_evaluate_weights_batches_by_targets_and_changes_nothing():
    model = gpt2(0, dropout=0.5)
    model.blocks[0].eval()
    modes = [m.training for _, m in model.named_modules()]
    parts = [(ids(0, 1, 3), ids(1, 1, 3)), (ids(2, 3, 8), ids(3, 3, 8))]
    with ml.no_grad(), evaluating(model):
        losses = [train.lm_loss(model, part).item() for part in parts]
    expected = (3 * losses[0] + 24 * losses[1]) / 27
    assert ml.evaluate(model, parts) == pytest.approx(expected, rel=1e-14)
    assert ml.evaluate(model, iter(parts)) == pytest.approx(expected, rel=1e-14)
    assert modes == [m.training for _, m in model.named_modules()]
    assert ml.evaluate(model, parts, loss=lambda m, b: ml.Tensor(np.array(2.5))) == 2.5
    with pytest.raises(ValueError, match="no batches"):
        ml.evaluate(model, [])


def test_a_list_of_batches_is_cycled():
    listed = [windows()[i] for i in range(3)]

    class Forever:
        def __getitem__(self, i):
            return listed[i % 3]

    for accumulate in (1, 2):
        one = go("full", listed, accumulation_steps=accumulate)
        assert_same(one, go("full", Forever(), accumulation_steps=accumulate))


def test_every_step_sees_its_own_batches():
    asked = []

    class Watched:
        def __getitem__(self, i):
            asked.append(i)
            return windows()[i]

    model, optimizer = job("full")
    ml.fit(model, Watched(), optimizer, 3, accumulation_steps=2, progress=False)
    assert asked == [0, 1, 2, 3, 4, 5]


def test_batches_without_an_index_raise():
    model, optimizer = job("full")
    with pytest.raises(TypeError, match="batches\\[i\\]"):
        ml.fit(model, (windows()[i] for i in range(3)), optimizer, 3)


@pytest.mark.parametrize("name", ["steps", "accumulation_steps", "save_every", "eval_every"])
def test_counts_out_of_range_raise(name, tmp_path):
    path = tmp_path / "run.npz" if name == "save_every" else None
    model, optimizer = job("full")
    for value in (-1, 2.5, True, "3", *(() if name == "eval_every" else (0,))):
        with pytest.raises(ValueError, match=f"fit: {name} must be an integer >= "):
            ml.fit(model, windows(), optimizer, checkpoint=path, **{"steps": 1, name: value})


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_gradient_that_is_not_finite_names_the_step_and_touches_no_weight(accumulate, backend):
    model, optimizer = job("full")
    states = []

    def loss(model, batch):
        states.append(model.state_dict())
        value = train.lm_loss(model, batch)
        return value * float("nan") if len(states) > 2 * accumulate else value

    words = "backward: the gradient" if backend.on_host else "the loss or a gradient"
    with pytest.raises(FloatingPointError, match=f"fit: step 2: {words}"):
        ml.fit(
            model, windows(), optimizer, 5, loss=loss, accumulation_steps=accumulate, progress=False
        )
    if not backend.on_host:
        return  # raised when the losses are read
    assert optimizer.t == 2
    after = model.state_dict()
    assert all(np.array_equal(after[n], a) for n, a in states[-1].items())


def test_another_loss_is_trained():
    layer = nn.Linear(3, 2, rng=0, dtype="float64")
    x, W = normal(0, 20, 3), normal(1, 2, 3)
    y = x @ W.T

    def squares(model, batch):
        error = model(ml.Tensor(batch[0])) - ml.Tensor(batch[1])
        return (error * error).mean()

    optimizer = optim.AdamW(layer.trainable_parameters(), 0.05, weight_decay=0.0)
    history = ml.fit(layer, [(x, y)], optimizer, 400, loss=squares, progress=False,
                     schedule=optim.cosine_schedule(0.05, 400))
    assert history.losses[-1] < 1e-6 * history.losses[0]
    np.testing.assert_allclose(layer.state_dict()["W"], W, atol=1e-3)


def test_progress_is_ten_lines_a_function_for_lines_or_nothing(capsys):
    ml.fit(*with_batches("full"), 20, progress=False)
    assert capsys.readouterr().out == ""
    ml.fit(*with_batches("full"), 20)
    printed = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in printed] == [f"{i}/20" for i in range(2, 21, 2)]
    lines = []
    history = ml.fit(*with_batches("full"), 3, progress=lines.append, log_every=2,
                     held_out=[windows()[5]])
    assert capsys.readouterr().out == "" and len(lines) == 2
    assert lines[0].startswith(f"step 2/3  loss {history.losses[1]:.4f}  lr 2.00e-02")
    assert f"held out {history.held_out[-1][1]:.4f}" in lines[1] and lines[1].endswith("0:00 left")


# Numbers that are not finite.


def poisoned(at: int, name: str = "ln_f.g", value: float = float("inf")):
    """Return (model, optimizer); step `at` makes a parameter not finite."""
    model, optimizer = job("full")
    step = optimizer.step

    def spoil() -> None:
        step()
        if optimizer.t == at:
            optimizer.parameters[name].data[0] = value

    optimizer.step = spoil
    return model, optimizer


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_parameter_that_is_not_finite_is_named_and_never_saved(value, tmp_path):
    path = tmp_path / "run.npz"
    for at in (2, 4):  # a step with a save after it, and one without
        model, optimizer = poisoned(at, value=value)
        words = f"fit: after {at} of 4 steps ln_f.g is not finite: lower the learning rate or clip"
        with pytest.raises(FloatingPointError, match=words):
            ml.fit(model, windows(), optimizer, 4, checkpoint=path, save_every=1, progress=False,
                   log_every=99)
        assert contents(path)[1]["done"] == at - 1
        assert all(np.isfinite(array).all() for array in contents(path)[0].values())
        model, optimizer = poisoned(at, value=value)
        with pytest.raises(FloatingPointError, match=words):
            ml.fit(model, windows(), optimizer, at, progress=False) if at == 4 else ml.fit(
                model, windows(), optimizer, 4, progress=False, log_every=1
            )
        path.unlink()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_gradient_that_fails_because_of_a_parameter_names_the_parameter(backend):
    if not backend.on_host:
        pytest.skip("a device raises when the losses are read")
    model, optimizer = poisoned(2)
    words = "after 2 of 9 steps ln_f.g is not finite"
    with pytest.raises(FloatingPointError, match=words):
        ml.fit(model, windows(), optimizer, 9, progress=False, log_every=99)
    model, optimizer = job("full")
    model.tok.W.data[...] = float("nan")
    with pytest.raises(
        FloatingPointError, match=r"before the first step tok.W is not finite: check the"
    ):
        ml.fit(model, windows(), optimizer, 2, progress=False)


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
def test_a_held_out_loss_that_is_not_finite_raises(value, tmp_path):
    def loss(model, batch):
        result = train.lm_loss(model, batch)
        return result if ml.tensor.recording() or optimizer.t < at else result * value

    for at, when in ((0, "before the first step"), (4, "after 4 of 5 steps")):
        model, optimizer = job("lora")
        path = tmp_path / f"{at}.npz"
        with pytest.raises(FloatingPointError, match=f"fit: {when} the held-out loss is {value}"):
            ml.fit(model, windows(), optimizer, 5, held_out=[windows(9)[0]], eval_every=2,
                   loss=loss, checkpoint=path, save_every=1, progress=False)
        assert path.exists() == (at > 0)
        assert at == 0 or contents(path)[1]["done"] == 3


def test_an_interrupt_saves_no_parameter_that_is_not_finite(tmp_path):
    path = tmp_path / "run.npz"
    model, optimizer = poisoned(3)

    def loss(model, batch):
        if optimizer.t == 2:
            signal.raise_signal(signal.SIGINT)
        return train.lm_loss(model, batch)

    with pytest.raises(KeyboardInterrupt) as stopped:
        ml.fit(model, windows(), optimizer, 5, checkpoint=path, save_every=2, progress=False,
               loss=loss, log_every=99)
    assert isinstance(stopped.value.__context__, FloatingPointError)
    assert contents(path)[1]["done"] == 2


# Invalid arguments raise before the work: nothing is computed, nothing written.

X, NAN = windows()[0], float("nan")
NEW = "create the optimizer after attach, from model.trainable_parameters()"
PAIRS = r"put a single batch in a list, \[\(inputs, targets\)\]"


def before_attach(call) -> None:
    model, optimizer = job("full")
    lora.attach(model, ml.LoRAConfig(r=2), rng=0)
    call(model=model, optimizer=optimizer)


def from_another_model(call) -> None:
    call(optimizer=job("full")[1])


MISTAKES = [
    ({"batches": "text"}, TypeError, r"fit: batches must give \(inputs, targets\), not text"),
    ({"batches": []}, ValueError, "fit: there are no batches"),
    ({"batches": iter([X])}, TypeError, r"fit: batches\[i\] must work.*pass list\(batches\)"),
    ({"batches": X}, TypeError, rf"fit: batches\[0\] must .* array of shape \(2, 6\): {PAIRS}"),
    ({"batches": [X[0]]}, TypeError, rf"batches\[0\] must be .* an array of shape .*: {PAIRS}"),
    ({"batches": [X[:1]]}, TypeError, rf"batches\[0\] must be .*, not a tuple: {PAIRS}"),
    ({"model": None}, TypeError, "fit: the model must be a Module, such as a GPT2, not None"),
    ({"optimizer": None}, TypeError, "fit: the optimizer must be one of minilora.*, not None"),
    ({"optimizer": gpt2()}, TypeError, r"AdamW\(model.trainable_.*, lr=1e-3\), not a GPT2"),
    ({"optimizer": optim.AdamW}, TypeError, "the optimizer must be .*, not the class AdamW"),
    (from_another_model, ValueError, f"fit: no parameter of the optimizer is in the model: {NEW}"),
    (before_attach, ValueError, f"fit: tok.W and all other .* are frozen: {NEW}"),
    ({"held_out": X}, TypeError, rf"fit: held_out\[0\] must be .* of shape \(2, 6\): {PAIRS}"),
    ({"held_out": []}, ValueError, "fit: held_out has no batches: leave it out or add one"),
    ({"held_out": windows()}, TypeError, "fit: held_out must be a list of batches, not a Windows"),
    ({"held_out": "text"}, TypeError, r"fit: held_out\[0\] must be"),
    ({"eval_every": 2}, ValueError, "fit: eval_every is 2, but held_out is missing: give both"),
    ({"eval_every": -1}, ValueError, "fit: eval_every must be an integer >= 0, not -1"),
    ({"log_every": -1}, ValueError, "fit: log_every must be an integer >= 0, not -1"),
    ({"steps": 0}, ValueError, "fit: steps must be an integer >= 1, not 0"),
    ({"steps": 2.5}, ValueError, "fit: steps must be an integer >= 1, not 2.5"),
    ({"schedule": 0.1}, TypeError, "fit: schedule must be .*, not a float: for a const.* lr"),
    ({"schedule": lambda i: 1.0 - i}, ValueError, r"schedule\(2\) must be finite and .*, not -1"),
    ({"schedule": lambda i: NAN}, ValueError, r"fit: schedule\(0\) must be finite .*, not nan"),
    ({"schedule": lambda i: 1 / (4 - i) if i < 4 else 1e999}, ValueError, r"schedule\(4\) .* inf"),
    ({"max_grad_norm": 0}, ValueError, "fit: max_grad_norm must be positive, not 0"),
    ({"max_grad_norm": NAN}, ValueError, "fit: max_grad_norm must be positive, not nan"),
    ({"checkpoint": "run.json"}, ValueError, "run.json: give a name that ends in .npz"),
    ({"checkpoint": "nowhere/run.npz"}, ValueError, "nowhere is not a folder"),
]


@pytest.mark.parametrize("mistake", range(len(MISTAKES)))
def test_an_invalid_argument_raises_before_the_work(mistake, backend, tmp_path, monkeypatch):
    if backend.name != "numpy":
        pytest.skip("no array is touched")
    monkeypatch.chdir(tmp_path)
    change, error, message = MISTAKES[mistake]
    computed = []

    def loss(model, batch):
        computed.append(1)
        return train.lm_loss(model, batch)

    def call(**how) -> None:
        model, optimizer = job("full")
        given = {"model": model, "batches": windows(), "optimizer": optimizer, "steps": 5,
                 "loss": loss, "progress": False, **how}
        before = job("full")[0].state_dict()
        with pytest.raises(error, match=message):
            ml.fit(**given)
        after = model.state_dict()
        assert all(np.array_equal(before[name], after[name]) for name in before)
        assert not computed and optimizer.t == 0 and not [*tmp_path.iterdir()]

    change(call) if callable(change) else call(**change)


def test_a_rate_set_by_hand_is_checked():
    model, optimizer = job("full")
    optimizer.lr = float("nan")
    with pytest.raises(ValueError, match="fit: the optimizer's lr must be finite"):
        ml.fit(model, windows(), optimizer, 5, progress=False)


def test_a_schedule_is_called_once_for_every_step():
    asked = []
    ml.fit(*with_batches("full"), 4, schedule=lambda i: asked.append(i) or 0.1, progress=False)
    assert asked == [0, 1, 2, 3]


def test_an_update_without_any_gradient_raises_and_changes_nothing():
    model, _ = job("lora")
    optimizer = optim.SGD(gpt2().trainable_parameters(), 0.1)
    with pytest.raises(
        ValueError, match="train_step: no parameter of the optimizer gets a gradient"
    ):
        ml.train_step(model, [X], optimizer)
    assert optimizer.t == 0
    with pytest.raises(ValueError, match="train_step: there are no batches"):
        ml.train_step(model, [], optimizer)
    twin = lora.attach(model, ml.LoRAConfig(r=2, targets=("k",)), name="other", rng=0)
    assert twin
    optimizer = optim.SGD(model.trainable_parameters(), 0.1)
    lora.activate(model)
    for p in model.tok.parameters():
        p.requires_grad = True  # so that a tape exists
    with pytest.raises(ValueError, match="no parameter of the optimizer gets a gradient"):
        ml.fit(model, windows(), optimizer, 3, progress=False)


def test_an_invalid_batch_or_loss_raises():
    model, optimizer = job("full")
    for call in (lambda x: ml.evaluate(model, x), lambda x: ml.train_step(model, x, optimizer)):
        for batches, kind in (
            (X, r"an array of shape \(2, 6\)"),
            ("text", "a str"),
            ([None], "None"),
        ):
            with pytest.raises(
                TypeError, match=rf"a batch must be \(inputs, targets\), not {kind}"
            ):
                call(batches)
    with pytest.raises(TypeError, match=r"evaluate: the model must be a Module, .* not a list"):
        ml.evaluate([X], model)
    for call in (ml.evaluate, lambda *x, **how: ml.train_step(*x, optimizer, **how)):
        with pytest.raises(TypeError, match=r"the loss must return a Tensor .*, not a float"):
            call(model, [X], loss=lambda model, batch: train.lm_loss(model, batch).item())
    with pytest.raises(TypeError, match=r"evaluate: the loss must return a Tensor .*, not None"):
        ml.evaluate(model, [X], loss=lambda model, batch: None)
