"""The command line: what it writes can be read again, merged is unmerged, bad input is told."""

import json
from types import SimpleNamespace

import numpy as np
import pytest

import minilora as ml
from minilora import accounting, cli, demo

BAD = {
    "generate --adapter none.npz": "there is no file none.npz",
    "generate --base none": "there is no file none, nor a built-in base",
    "generate --top-p 2": "top_p must be in",
    "finetune none.txt": "there is no file none.txt, nor a built-in text",
    "finetune kjv --r 0": "r must be a whole number from 1",
    "account --targets zz": "no layer matches 'zz'",
    "merge --adapter words.txt": "words.txt is not a minilora file",
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, backend):
    """Everything happens in a folder of its own, on the backend of the test."""
    monkeypatch.chdir(tmp_path)
    put_in_use(backend, monkeypatch)
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    return tmp_path


def put_in_use(backend, monkeypatch):
    """Whichever backend a command line asks for, it gets this one, plain or not."""

    def use(name, plain):
        monkeypatch.setattr(backend, "plain", plain)

    monkeypatch.setattr(cli, "backend", SimpleNamespace(use=use, current=lambda: backend))


def run(line: str, capsys) -> dict:
    code = cli.main([*line.split(), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


def test_finetune_merge_and_generate_tell_one_story(folder, capsys):
    tuned = run(
        "finetune words.txt --out fox.npz --steps 12 --batch 4 --window 32 --checks 2", capsys
    )
    assert tuned["after"] < tuned["before"] - 0.5 and not list(folder.glob("*.run.npz"))
    assert tuned["trainable"] == 4 * 2 * 8 * (160 + 160) and tuned["bytes"] < 200_000
    merged = run("merge --adapter fox.npz --out plain.npz", capsys)
    assert 0 < merged["difference"] <= merged["bound"] and merged["layers"] == 8
    ask = "generate --prompt the --tokens 12 --seed 3"
    unmerged = run(f"{ask} --adapter fox.npz", capsys)
    assert run(f"{ask} --base plain.npz", capsys) == unmerged
    assert run(f"{ask} --base plain.npz --no-cache", capsys) == unmerged
    assert run(ask, capsys) != unmerged


def test_a_base_in_half_precision_tells_the_same_story(folder, capsys):
    stored = "--base-dtype float16"
    run(
        f"finetune words.txt --out fox.npz --steps 2 --batch 2 --window 16 --checks 1 {stored}",
        capsys,
    )
    merged = run(f"merge --adapter fox.npz --out plain.npz {stored}", capsys)  # without a warning
    assert 0 < merged["difference"] <= merged["bound"]
    ask = "generate --prompt the --tokens 12 --temperature 0"
    unmerged = run(f"{ask} --adapter fox.npz {stored}", capsys)
    assert run(f"{ask} --base plain.npz", capsys) == unmerged
    assert cli.main(["merge", "--adapter", "fox.npz", "--base-dtype", "int8"]) == 2
    assert "is not a narrower float" in capsys.readouterr().err


def test_an_interrupted_finetune_goes_on_and_ends_the_same(folder, capsys, monkeypatch):
    line = "finetune words.txt --steps 4 --batch 2 --window 16 --checks 1"
    whole = run(f"{line} --out whole.npz", capsys)
    save = cli.lora.save

    def stop(*args):
        raise KeyboardInterrupt

    monkeypatch.setattr(cli.lora, "save", stop)  # the run itself is done and on disk by then
    assert cli.main([*line.split(), "--out", "part.npz"]) == 130
    assert "goes on" in capsys.readouterr().err and (folder / "part.run.npz").exists()
    monkeypatch.setattr(cli.lora, "save", save)
    part = run(f"{line} --out part.npz", capsys)
    assert part["after"] == whole["after"] and part["before"] == whole["before"]
    with np.load("whole.npz") as a, np.load("part.npz") as b:
        for name in a.files:
            assert name == "meta.json" or a[name].tobytes() == b[name].tobytes()


def test_account_sets_full_beside_lora(capsys, backend):
    on_host = backend.on_host  # a device's pool hands out whole blocks, its ops are told
    near, near_peak = (0.01, 0.01) if on_host else (0.03, 0.1)  # all at once: larger scratch
    told = run("account --batch 1 --window 16 --r 2", capsys)
    assert told["lora"]["trainable"] == 4 * 2 * 2 * 320
    for side in told.values():
        for name, row in side["bytes"].items():
            allowed = near_peak if name == "peak" else near
            assert row["measured"] == pytest.approx(row["predicted"], rel=allowed)
    bytes_of = {name: side["bytes"]["total"]["measured"] for name, side in told.items()}
    assert bytes_of["lora"] < bytes_of["full"]


def test_account_shows_what_recomputing_and_a_narrow_base_save(capsys):
    line = "account --batch 4 --window 64"
    kept, less = run(line, capsys), run(f"{line} --recompute --base-dtype float16", capsys)
    for name in ("activations", "peak"):
        assert all(less[m]["bytes"][name]["measured"] < kept[m]["bytes"][name]["measured"]
                   for m in ("full", "lora"))  # fmt: skip
    frozen = [side["lora"]["bytes"]["frozen weights"]["measured"] for side in (kept, less)]
    assert 0.5 <= frozen[1] / frozen[0] < 0.51


def test_account_of_a_named_shape_is_its_plan(capsys):
    line = "account gpt3-175b --r 4 --targets q,v --window 16 --policy mixed --recompute --plain"
    told = run(line, capsys)
    planned = accounting.plan(
        "gpt3-175b", r=4, alpha=16, targets=("q", "v"), tokens=16, policy="mixed", recompute=True,
        plain=True,
    )  # fmt: skip
    assert told == planned.as_dict() and told["bytes"]["frozen weights"] > 300e9
    assert cli.main(["account", "gpt2", "--method", "full", "--window", "8"]) == 0
    assert "all parameters, 1 × 8 tokens" in capsys.readouterr().out


def test_plain_runs_no_kernel_and_writes_the_same(capsys, monkeypatch):
    line = "generate --prompt the --tokens 6 --temperature 0"
    written = run(line, capsys)

    def kernel(*arrays, **settings):
        raise ValueError("a kernel")

    for op in ml.kernels.TABLE:
        monkeypatch.setattr(op, "kernel", kernel)
    assert run(f"{line} --plain", capsys) == written
    assert cli.main(line.split()) == 2 and "a kernel" in capsys.readouterr().err


def test_the_number_of_threads_changes_no_bit_of_an_adapter(folder, capsys):
    before, files = ml.threads(), []
    line = "finetune words.txt --out fox.npz --steps 2 --batch 2 --window 16 --checks 1"
    for n in (1, 3):
        run(f"{line} --threads {n}", capsys)
        assert ml.threads(before) == n
        files.append((folder / "fox.npz").read_bytes())
    assert files[0] == files[1]
    assert cli.main(["info", "--threads", "-1"]) == 2
    assert "n must be a whole number" in capsys.readouterr().err


def test_finetune_recomputes_to_the_same_adapter(folder, capsys):
    line = "finetune words.txt --steps 3 --batch 2 --window 16 --checks 1 --dropout 0.2"
    run(f"{line} --out one.npz", capsys)
    run(f"{line} --out two.npz --recompute", capsys)
    with np.load("one.npz") as one, np.load("two.npz") as two:
        arrays = [name for name in one.files if one[name].dtype.kind == "f"]
        assert arrays and all(np.array_equal(one[a], two[a.replace("one", "two")]) for a in arrays)


def test_half_precision_is_what_is_asked_for(folder, monkeypatch):
    told = {}

    def fit(model, *_, loss_scale=None, **settings):
        told.update(dtype=str(model.ln_f.g.dtype), scale=loss_scale)
        raise ValueError("enough")

    monkeypatch.setattr(cli, "fit", fit)
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1 --dtype"
    for dtype in ("float16", "float32"):
        assert cli.main([*line.split(), dtype]) == 2
        assert told["dtype"] == dtype and (told["scale"] is not None) == (dtype == "float16")


def test_finetune_in_half_precision_learns_with_a_scaled_loss(folder, capsys):
    line = "finetune words.txt --out fox.npz --steps 4 --batch 1 --window 8 --checks 1"
    told = run(f"{line} --dtype float16", capsys)
    run("generate --adapter fox.npz --tokens 2 --base-dtype float16", capsys)  # without a warning
    whole = run(line, capsys)
    assert told["after"] < told["before"] and abs(told["after"] / whole["after"] - 1) < 0.01


def test_info_tells_versions(capsys):
    told = run("info", capsys)
    assert told["numpy"] == np.__version__ and "cupy" in told["devices"].lower()


def test_options_before_the_command_are_those_behind_it(capsys, backend):
    before = ml.threads()
    try:
        assert cli.main(["--json", "--plain", "--threads", "1", "info"]) == 0
        assert json.loads(capsys.readouterr().out)["numpy"] == np.__version__
        assert backend.plain and ml.threads() == 1
    finally:
        ml.threads(before)
    written = [run(line, capsys) for line in (
        "--seed 3 generate --tokens 8", "generate --tokens 8 --seed 3", "generate --tokens 8",
        "--seed 4 generate --tokens 8 --seed 3",
    )]  # fmt: skip
    assert written[0] == written[1] == written[3] != written[2]
    assert not backend.plain


@pytest.mark.parametrize("line", BAD)
def test_bad_input_is_told_and_returns_2(line, capsys):
    assert cli.main(line.split()) == 2
    assert BAD[line] in capsys.readouterr().err


def test_the_demo_adapts_accounts_and_merges():
    lines: list[str] = []
    told = demo.demo(0, lines.append, steps=3)
    assert told["after"] < told["before"] and told["same_sample"]
    assert 0 < told["difference"] <= told["bound"]
    assert told["lora"]["gradients"]["measured"] == 4 * told["trainable"]
    assert any("what rounding alone" in line for line in lines)
