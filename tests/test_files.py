"""Adapters in files: one format for all methods, and files of version 0.1.0 (adapters/files.py)."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from strategies import bits, gpt2, ids, logits, same_bytes, shake, snapshot

import minilora as ml
from minilora import lora, methods, nn
from minilora.adapters.registry import adapters_of, trained_by
from minilora.files import checkpoint
from minilora.models.pretrained import load_model

pytestmark = pytest.mark.usefixtures("numpy_only")
SAMPLES = Path(__file__).parent / "samples"  # written by minilora 0.1.0, before the one registry
ADAPTERS = sorted(p for p in SAMPLES.glob("*.npz") if p.stem not in ("gpt2", "bert"))
RENAMED = {"tok.E": "embed.E"}  # where trained tokens stand now


@pytest.mark.filterwarnings("error")  # such as: trained on another base
@pytest.mark.parametrize("load", [lora.load, methods.load])
@pytest.mark.parametrize("path", ADAPTERS, ids=lambda path: path.stem)
def test_files_of_0_1_0_load_bit_for_bit_by_either_door(path, load, tmp_path):
    arrays, meta = checkpoint.read(path)
    model = load_model(SAMPLES / ("bert.npz" if path.name.startswith("bert-") else "gpt2.npz"))
    load(model, path, base_dtype="float16" if path.stem == "adapter-half" else None)
    ours = {at: ml.asnumpy(p.data) for at, p in trained_by(model, meta["name"]).items()}
    tokens = "preembed" in path.stem
    names = {at: at.replace(".base.", ".") for at in arrays}
    if tokens:
        names = {at: RENAMED.get(name, name) for at, name in names.items()}
    assert ours.keys() == set(names.values())
    for at, array in arrays.items():
        assert same_bytes(ours[names[at]], array), at
    again = tmp_path / "again.npz"
    lora.save(model, again)
    assert checkpoint.read(again)[1]["base"] == meta["base"] or path.name.count("method-")
    other = load_model(SAMPLES / ("bert.npz" if path.name.startswith("bert-") else "gpt2.npz"))
    load(other, again, base_dtype="float16" if path.stem == "adapter-half" else None)
    x = ids(vocabulary=16)
    with methods.prompt(3):
        assert same_bytes(logits(other, x), logits(model, x))


def test_there_is_a_sample_of_every_method_and_kind():
    called = {path.stem.partition("method-")[2] for path in ADAPTERS}
    later = {"peft-lora"}  # than 0.1.0
    assert set(methods.METHODS) - later <= called and len(ADAPTERS) == 29


@pytest.mark.parametrize("called", ["lora", "bitfit", "adapter-h"])
def test_a_file_of_one_door_is_a_file_of_the_other(tmp_path, called):
    model = gpt2(0)
    methods.apply(model, called, rng=0)
    shake(model.trainable_parameters().values(), 1)
    outputs = logits(model, ids())
    for save in (lora.save, methods.save):
        for load in (lora.load, methods.load):
            save(model, tmp_path / "a.npz")
            other = gpt2(0)
            load(other, tmp_path / "a.npz")
            assert np.array_equal(logits(other, ids()), outputs)


@pytest.mark.parametrize("ranks, copied", [
    ({"q": 2, "sub.q": 1}, []), ({"q": 2}, []), ({"q": 2}, ["q.b"]), ({"sub.q": 2}, ["q.b"]),
])
def test_a_file_of_0_1_0_adapts_its_own_paths_where_one_ends_another(ranks, copied, tmp_path):
    model = nn.Module()
    model.q, model.sub = nn.Linear(3, 3, rng=0), nn.Module()
    model.sub.q = nn.Linear(3, 3, rng=1)
    before = bits(model)
    shapes = dict.fromkeys(copied, (3,))
    for at, r in ranks.items():
        shapes |= {f"{at}.A": (r, 3), f"{at}.B": (3, r)}
    rng = np.random.default_rng(0)
    arrays = {at: rng.normal(size=shape).astype("float32") for at, shape in shapes.items()}
    settings = {"r": 2, "alpha": 3.0, "targets": [*ranks], "dropout": 0.0, "init": "gaussian",
                "bias": "none", "trainable": copied, "rank_pattern": {}, "alpha_pattern": {}}
    checkpoint.write(tmp_path / "a.npz", arrays, {
        "kind": "adapter", "name": "old", "config": settings, "whole": copied, "base": "0",
        "layers": {at: {"r": r, "alpha": 3.0, "scale": 3 / r} for at, r in ranks.items()},
    })
    with pytest.warns(UserWarning, match="trained on another base"):
        assert lora.load(model, tmp_path / "a.npz") == [*ranks]
    ours = {at: ml.asnumpy(p.data) for at, p in trained_by(model, "old").items()}
    assert ours.keys() == arrays.keys()
    assert all(same_bytes(ours[at], x) for at, x in arrays.items())
    assert bits(lora.detach(model)) == before


@pytest.mark.parametrize("path", ["blocks.0.attn.q", "blocks.1.attn.v"])
@pytest.mark.parametrize("called", ["lora", "dora"])
def test_a_file_whose_scales_are_not_those_of_its_settings_changes_nothing(tmp_path, called, path):
    model = gpt2(0)
    methods.apply(model, called, r=2, alpha=5.0, rng=0)
    lora.save(model, tmp_path / "a.npz")
    arrays, meta = checkpoint.read(tmp_path / "a.npz")
    assert set(meta["scales"].values()) == {2.5} and len(meta["scales"]) == 4
    meta["scales"][path] = 5.0
    checkpoint.write(tmp_path / "b.npz", arrays, meta)
    fresh = gpt2(0)
    before = snapshot(fresh)
    with pytest.raises(ValueError, match=f"b.npz.*the scale of {path} is 5.0, but .* give 2.5"):
        lora.load(fresh, tmp_path / "b.npz")
    assert snapshot(fresh) == before


@pytest.mark.parametrize("trainable", [False, True])
def test_loading_leaves_the_flags_of_other_adapters_and_freezes_a_base_that_had_none(
    trainable, tmp_path
):
    model = gpt2(0)
    methods.apply(model, "lora", r=2, trainable="ln_f", rng=0)
    lora.save(model, tmp_path / "a.npz")
    ours = trained_by(model, "default")
    lora.load(model, tmp_path / "a.npz", "loaded", trainable=trainable)
    assert all(p.requires_grad for p in ours.values())
    assert {p.requires_grad for p in trained_by(model, "loaded").values()} == {trainable}
    fresh = gpt2(0)
    lora.load(fresh, tmp_path / "a.npz", trainable=trainable)
    wanted = trained_by(fresh, "default").values() if trainable else []
    assert {*map(id, fresh.trainable_parameters().values())} == {*map(id, wanted)}


def test_lora_loads_the_file_of_any_method_in_a_new_process(tmp_path):
    """Also where nothing has imported `methods` yet."""
    model = gpt2(0)
    methods.apply(model, "dora", r=2, rng=0)
    methods.save(model, tmp_path / "d.npz")
    ml.save_model(gpt2(0), tmp_path / "m.npz")
    code = ("import sys, minilora as ml; from minilora import lora\n"
            "model = ml.load_model('m.npz', dtype='float64')\n"
            "assert 'minilora.methods' not in sys.modules\n"
            "print(len(lora.load(model, 'd.npz')))")
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True,
        env=os.environ | {"PYTHONPATH": str(Path(ml.__file__).parent.parent)})
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len(adapters_of(model, "default"))
