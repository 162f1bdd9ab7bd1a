"""`minilora finetune`: what is checked before the work, and what a result is compared with."""

import json
import math
import os
import random
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import kept
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import gpt2

import minilora as ml
from minilora import cli, data, lora
from minilora.cli import finetune
from minilora.files import atomic

pytestmark = pytest.mark.usefixtures("numpy_only")
SHORT = "--steps 1 --batch 2 --window 8 --checks 1"


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    return tmp_path


def run(line: str, capsys) -> tuple[int, dict, str]:
    """Return (exit code, result, messages)."""
    code = cli.main([*shlex.split(line), "--json"])
    out, err = capsys.readouterr()
    return code, json.loads(out or "{}"), err


# Before the work: a name that no file can have.

NAMES = st.binary(min_size=1, max_size=20).filter(lambda name: not {0, 47} & {*name})


@given(NAMES)
@example(b"\xff")
@example("ü".encode())
@example(b"a\nb")
@example(b"base")
@example(b"base.base")
def test_an_adapter_is_written_to_any_name_that_a_file_can_have(tmp_path_factory, name):
    """As `finetune` does at its end. A locale that cannot decode the name changes nothing."""
    folder = tmp_path_factory.mktemp("names")
    for stem in (os.fsdecode(name), name.decode("ascii", "surrogateescape")):
        model, path = gpt2(), folder / f"{stem}.npz"
        atomic.check(path, ".npz")
        lora.attach(model, ml.LoRAConfig(r=1), name=finetune._adapter_name(path.stem), rng=0)
        lora.save(model, path)
        lora.load(gpt2(), path)


@given(st.text(st.characters(), max_size=5))
@example("\udcff")
@example("a\0b")
def test_an_adapter_with_any_name_is_refused_at_once_or_can_be_saved(tmp_path_factory, name):
    path = tmp_path_factory.mktemp("names") / "a.npz"
    model = gpt2()
    try:
        lora.attach(model, ml.LoRAConfig(r=1), name=name, rng=0)
    except ValueError as error:
        assert "cannot be an adapter's name" in str(error)
        return
    lora.save(model, path)
    lora.load(gpt2(), path)
    optimizer, batch = ml.optim.SGD(model.trainable_parameters(), 0.1), ([[1]], [[1]])
    for steps in (1, 1):  # the second one reads the file
        ml.fit(model, [batch], optimizer, steps, checkpoint=path.with_stem("b"), progress=False)


@pytest.mark.skipif(os.name != "posix", reason="other systems have no such names")
@pytest.mark.parametrize("name", kept(["ü.npz".encode(), b"\xff.npz"], b"\xff.npz"))
def test_a_name_of_other_letters_is_written_under_any_locale(name, folder):
    here = os.pathsep.join([str(Path(ml.__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    ascii = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": here}
    line = [sys.executable, "-m", "minilora", "finetune", "words.txt", *SHORT.split(), "--out"]
    done = subprocess.run([*line, name], env=os.environ | ascii, capture_output=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert os.path.exists(name) and not [*folder.glob("*.run.npz")]


@pytest.mark.parametrize("name", ["\ud800.npz", "a\0.npz"])
def test_a_name_that_no_file_can_have_is_refused_before_the_work(name):
    def loss(model, batch):
        raise AssertionError("the work has begun")

    model = gpt2()
    optimizer = ml.optim.SGD(model.parameters(), 0.1)
    words = "cannot be a file's name here .*: give another name"
    with pytest.raises(ValueError, match=words):
        ml.fit(model, [([[1]], [[1]])], optimizer, 1, checkpoint=name, loss=loss)
    with pytest.raises(ValueError, match=words):
        ml.save_model(model, name)


# At the end of the work: what was trained is kept, and an adapter that is written is no error.


def test_the_run_file_may_be_gone_or_may_stay(folder, capsys, monkeypatch):
    save = lora.save

    def alone(model, path):
        for file in folder.glob("*.run.npz"):
            file.unlink()
        return save(model, path)

    monkeypatch.setattr(finetune.lora, "save", alone)
    code, _, said = run(f"finetune words.txt {SHORT}", capsys)
    assert code == 0 and "not needed" not in said
    assert [path.name for path in folder.glob("*.npz")] == ["adapter.npz"]
    monkeypatch.setattr(finetune.lora, "save", save)

    def refuse(path, missing_ok=False):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "unlink", refuse)
    code, result, said = run(f"finetune words.txt {SHORT} --out b.npz", capsys)
    assert code == 0 and result["adapter"] == "b.npz"
    assert "b.run.npz is not needed any more, but cannot be removed (permission denied)" in said


@pytest.mark.parametrize("stop", [OSError(28, "No space left on device", "a.npz"),
                                  ValueError("a.npz exists and may not be replaced")])
def test_an_adapter_that_cannot_be_written_is_not_lost(stop, folder, capsys, monkeypatch):
    line = f"finetune words.txt {SHORT} --out a.npz"
    with monkeypatch.context() as patch:
        def fail(*args):
            raise stop

        patch.setattr(finetune.lora, "save", fail)
        code, _, said = run(line, capsys)
    assert code == 2
    assert "finished and saved in a.run.npz: the same command writes the file" in said
    code, _, said = run(line, capsys)
    assert code == 0 and "continuing from step 1" in said and "step 1/1" not in said
    assert sorted(path.name for path in folder.glob("*.npz")) == ["a.npz"]


# A result is told beside what it has to beat.


def test_the_loss_of_the_frequencies_is_that_of_the_likeliest_table_of_counts_plus_one():
    rng = np.random.default_rng(0)
    ids, batches = rng.integers(0, 7, 90), data.sequential(rng.integers(0, 9, 50), 2, 6)
    each = [
        -math.log((1 + int((ids == t).sum())) / (9 + 90))
        for _, targets in batches for t in targets.reshape(-1)
    ]
    assert data.unigram_loss(ids, batches, 9) == pytest.approx(np.mean(each), rel=1e-12)
    masked = [(x, np.where(y == y[0, 0], -100, y)) for x, y in batches[:1]]
    kept = [t for t in batches[0][1].reshape(-1) if t != batches[0][1][0, 0]]
    assert data.unigram_loss(ids, masked, 9) == pytest.approx(
        np.mean([-math.log((1 + int((ids == t).sum())) / 99) for t in kept])
    )


def korean(size: int) -> str:
    """Words of syllables that are as unequal as in a real text."""
    draw = random.Random(0)
    syllables = draw.sample([chr(code) for code in range(0xAC00, 0xD7A4)], 300)
    shares = [1 / (i + 1) for i in range(300)]
    words = ["".join(draw.choices(syllables, shares, k=draw.choice([1, 2, 2, 3])))
             for _ in range(size // 7)]
    return "".join(word + ("\n" if i % 9 == 8 else " ") for i, word in enumerate(words))


@pytest.mark.thorough
def test_a_base_that_does_not_know_the_tokens_is_told_with_a_remedy_that_works(folder, capsys):
    (folder / "korean.txt").write_text(korean(20_000), encoding="utf-8")
    line = "finetune korean.txt --steps 70 --batch 4 --window 64 --checks 2 --lr 1e-2"
    code, result, said = run(line, capsys)
    assert code == 0 and result["before"] > math.log(1024) and result["after"] > result["unigrams"]
    start = f"the base does not know these tokens: its held-out loss is {result['before']:.4f}"
    assert f"{start}, above 6.9315, the ln 1,024 of a guess: adapt its table of tokens too" in said
    assert said.index("does not know") < said.index("step "), "before the training"
    assert f"-> {result['after']:.4f} nats a token; to beat: {result['unigrams']:.4f}" in said
    assert "the adapter has not learned more than these frequencies: adapt its table" in said
    remedy = re.search(r"with (--targets \S+)", said)[1]
    _, better, said = run(f"{line} {remedy}", capsys)
    assert better["after"] < better["unigrams"] == result["unigrams"]
    assert "does not know these tokens" in said and "train longer, with --steps 210" in said
    assert "has not learned more" not in said


def test_a_text_that_the_base_knows_is_told_its_number_alone(capsys):
    code, result, said = run("finetune kjv --steps 1 --batch 4 --window 64 --checks 1", capsys)
    assert code == 0 and result["after"] < result["unigrams"] < math.log(1024)
    assert "does not know" not in said and "has not learned" not in said
    _, _, said = run("finetune words.txt --steps 1 --window 64 --checks 9", capsys)
    assert "held out (batches: 1, not 9)" in said
