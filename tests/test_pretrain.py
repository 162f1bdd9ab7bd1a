"""Training the base: an interrupted run ends with the same model and one log."""

import re
import signal
from importlib.resources import files

import numpy as np
import pytest

import minilora as ml
from minilora.files import checkpoint
from minilora.models.pretrained import BASES
from minilora.pretrain import RECIPES
from minilora.pretrain import pretrain as train

CONFIG = ml.GPT2Config(vocab_size=270, n_positions=8, d_model=8, n_layers=1, n_heads=2)
TEXT = "the quick brown fox jumps over the lazy dog\n" * 60


pytestmark = pytest.mark.usefixtures("numpy_only")


def go(out, say=lambda line: None, **how):
    return train(out, say=say, **{"steps": 6, "config": CONFIG, "batch": 2, "text": TEXT} | how)


def weights(path):
    arrays, _ = checkpoint.read(path, "model")
    return {name: array.tobytes() for name, array in arrays.items()}


def interrupt(line):
    """Ctrl-C after three steps."""
    if line.startswith("step 3/"):
        signal.raise_signal(signal.SIGINT)


def log(out):
    """Return the lines of the log, without the rates, speeds and times."""
    lines = out.with_suffix(".log").read_text("utf-8").splitlines()
    return [line.partition("  lr ")[0] for line in lines]


def test_an_interrupted_run_continues_to_the_same_model_and_one_log(tmp_path):
    whole, part = tmp_path / "whole.npz", tmp_path / "part.npz"
    go(whole)
    with pytest.raises(KeyboardInterrupt, match="after 3 of 6 steps"):
        go(part, interrupt)
    assert not part.exists()
    before = {path: path.read_bytes() for path in tmp_path.glob("part.*")}
    for message, other in {
        "--seed: 0 then, 1 now": {"seed": 1}, "batch: 2 then, 3 now": {"batch": 3},
        "steps: 6 then, 7 now": {"steps": 7}, "text: digest": {"text": TEXT + "a\n"},
    }.items():
        with pytest.raises(ValueError, match=rf"part\.run\.npz is a .* another run: .*{message}"):
            go(part, **other)
    assert {path: path.read_bytes() for path in tmp_path.glob("part.*")} == before
    go(part)
    assert weights(part) == weights(whole)
    both = [line for line in log(part) if not line.startswith("continuing")]
    assert both == log(whole) and len(both) == len(log(part)) - 1
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.{suffix}" for name in ("whole", "part") for suffix in ("npz", "log")
    }


def test_a_short_run_evaluates_after_every_step(tmp_path):
    _, history = go(tmp_path / "a.npz")
    assert [at for at, _ in history.held_out] == [*range(7)]


@pytest.mark.parametrize("name", RECIPES)
def test_the_log_of_the_built_in_base_has_these_settings(name, tmp_path, monkeypatch):
    """Compare its header, its logged steps and its rates: everything that needs no training."""
    log, total = files("minilora") / "data" / "bases" / f"{name}.log", RECIPES[name].steps
    line = rf"step +(\d+)/{total} .*?(held out)?[ .\d]* lr (\S+) "
    logged = re.findall(line, log.read_text("utf-8"))

    class Enough(Exception):
        pass

    def fit(model, batches, optimizer, steps, schedule, held_out, eval_every, log_every, **_):
        assert steps == total and len(logged) == steps // log_every and len(held_out) == 4
        for i, (step, evaluated, rate) in enumerate(logged):
            assert int(step) == (i + 1) * log_every
            assert bool(evaluated) == (int(step) % eval_every == 0)
            assert rate == f"{schedule(int(step) - 1):.2e}"
        raise Enough

    monkeypatch.setattr("minilora.pretrain.fit", fit)
    monkeypatch.setattr("minilora.pretrain.BPE.train", lambda *_: ml.load_base().tokenizer)
    with pytest.raises(Enough):
        train(tmp_path / "a.npz", name, say=lambda line: None)
    mine, theirs = ((tmp_path / "a.log").read_text("utf-8"), log.read_text("utf-8"))
    assert mine.split("; ", 1)[1].splitlines() == theirs.split("; ", 1)[1].splitlines()[:2]


def test_a_run_that_starts_anew_starts_its_log_anew(tmp_path):
    out = tmp_path / "a.npz"
    with pytest.raises(KeyboardInterrupt):
        go(out, interrupt)
    go(out, resume=False, seed=1)
    assert "seed 1" in log(out)[0] and not any("continuing" in line for line in log(out))
    other = tmp_path / "b.npz"
    go(other, seed=1)
    assert weights(out) == weights(other)


@pytest.mark.parametrize("name", ["a.npz", "a.log", "a.run.npz"])
def test_a_file_that_cannot_be_written_is_refused_before_the_work(tmp_path, name):
    (tmp_path / name).mkdir()
    lines = []
    with pytest.raises(ValueError, match=f"{name} is a folder"):
        go(tmp_path / "a.npz", lines.append)
    assert not lines and [path.name for path in tmp_path.iterdir()] == [name]


def test_the_model_learns_and_is_written_with_its_tokenizer(tmp_path):
    lines = []
    model, history = go(tmp_path / "a.npz", lines.append, steps=40)
    assert {path.name for path in tmp_path.iterdir()} == {"a.npz", "a.log"}
    assert (tmp_path / "a.log").read_text("utf-8").splitlines() == "\n".join(lines).splitlines()
    assert history.held_out[-1][1] < history.held_out[0][1]
    back = ml.load_model(tmp_path / "a.npz")
    assert back.tokenizer.merges == model.tokenizer.merges
    for (name, p), (_, q) in zip(model.named_parameters(), back.named_parameters()):
        assert np.array_equal(q.data, p.data.astype("float16").astype("float32")), name


def test_each_built_in_base_has_its_recipe():
    assert [*RECIPES] == [*BASES]
