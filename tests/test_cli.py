"""The command line: commands work together, options reach them, bad input gets a message."""

import dataclasses
import io
import json
import os
import re
import shlex
import subprocess
import sys
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from conftest import BUILDS, builds, kept
from strategies import gpt2, shake
from test_messages import FOREIGN

import minilora as ml
from minilora import accounting, cli, data, demo, lora, methods
from minilora.cli import command_line, finetune, generate, inputs, merge, parser, streams
from minilora.files import checkpoint

once = pytest.mark.usefixtures("numpy_only")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch, backend):
    """Run each test in a new folder, on the backend of the test."""
    monkeypatch.chdir(tmp_path)
    put_in_use(backend, monkeypatch)
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    return tmp_path


def put_in_use(backend, monkeypatch):
    """Give every command line this backend, plain or not, whichever it asks for."""

    def use(name, plain):
        monkeypatch.setattr(backend, "plain", plain)

    monkeypatch.setattr(cli, "backend", SimpleNamespace(use=use))


def parse(words):
    return parser.parse(command_line(), words)


def run(line: str, capsys) -> dict:
    code = cli.main([*shlex.split(line), "--json"])
    out, err = capsys.readouterr()
    assert code == 0, err
    return json.loads(out)


@once
def test_merged_and_unmerged_generate_the_same(folder, capsys):
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


@once
def test_merged_and_unmerged_generate_the_same_on_a_base_in_half_precision(folder, capsys):
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


def test_an_interrupted_finetune_continues_to_the_same_adapter(folder, capsys, monkeypatch):
    line = "finetune words.txt --steps 4 --batch 2 --window 16 --checks 1"
    full = run(f"{line} --out full.npz", capsys)

    def stop(*args):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finetune.lora, "save", stop)  # the training is finished and saved by then
        assert cli.main([*line.split(), "--out", "part.npz"]) == 130
    assert capsys.readouterr().err == (
        "minilora: interrupted; the training is finished and saved in part.run.npz: the same "
        "command writes the file\n"
    )
    before = (folder / "part.run.npz").read_bytes()
    assert cli.main([*line.split(), "--out", "part.npz", "--seed", "1"]) == 2
    message = capsys.readouterr().err
    assert "--seed: 0 then, 1 now" in message and "another --out, or --restart" in message
    assert (folder / "part.run.npz").read_bytes() == before and not (folder / "part.npz").exists()
    part = run(f"{line} --out part.npz", capsys)
    assert part["after"] == full["after"] and part["before"] == full["before"]
    with np.load("full.npz") as a, np.load("part.npz") as b:
        for name in a.files:
            assert name == "meta.json" or a[name].tobytes() == b[name].tobytes()
    (folder / "part.run.npz").write_bytes(before)
    other = run(f"{line} --out part.npz --seed 1 --restart", capsys)
    assert other["before"] == full["before"] and other["after"] != full["after"]


def stopped(message=""):
    def stop(*args, **settings):
        raise KeyboardInterrupt(*[message] * bool(message))

    return stop


@once
def test_an_interruption_has_its_message(capsys, monkeypatch):
    for given, message in (("", "interrupted; nothing new was saved"), ("in a.npz", "in a.npz")):
        monkeypatch.setattr(generate, "generate", stopped(given))
        assert cli.main(["generate"]) == 130
        assert capsys.readouterr().err == f"minilora: {message}\n"


CHANGES = ["--seed 1", "--targets q", "--r 4", "--alpha 16", "--dropout 0.5", "--lr 0.1",
           "--checks 2", "--dtype float64", "--batch 3", "--window 8"]


@once
def test_a_run_knows_every_option_that_defines_it(folder, monkeypatch):
    abouts = []

    def fit(model, batches, optimizer, steps, about, resume, held_out, schedule, **settings):
        abouts.append(about)
        rates = [schedule(i) for i in range(steps)]
        assert rates.index(max(rates)) == steps // 20 and max(rates) == about["--lr"]
        assert resume and len(held_out) == about["--checks"]
        adapters = [m for _, m in model.named_modules() if isinstance(m, lora.Adapter)]
        assert {adapter.dropout for adapter in adapters} == {about["--dropout"]}
        raise ValueError("enough")

    monkeypatch.setattr(finetune, "fit", fit)
    line = "finetune words.txt --batch 2 --window 16 --checks 1"
    for change in ["", *CHANGES]:
        assert cli.main([*line.split(), *change.split()]) == 2
        if change:
            option, value = change.split()
            differ = {name for name in abouts[0] if abouts[-1][name] != abouts[0][name]}
            assert (
                differ == {option}
                and str(abouts[-1][option]).strip("(',)").removesuffix(".0") == value
            )
    assert abouts[0]["text"] == (folder / "words.txt").read_text()
    assert np.array_equal(abouts[0]["tokenizer"], ml.load_base().tokenizer.merges)


def windows(model, text, batch, tokens):
    held_out = model.tokenizer.encode(data.split(text)[1])
    return data.sequential(held_out, batch, tokens)


@once
def test_an_adapter_worse_than_the_base_is_written_reported_and_returns_1(folder, capsys):
    line = "finetune kjv --steps 2 --batch 2 --window 16 --checks 2 --lr 1000 --json"
    assert cli.main(line.split()) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert not result["passed"] and result["after"] > result["before"] + 1
    assert err.endswith(f"\nminilora: {result['failed']}\n") and (folder / "adapter.npz").exists()
    assert result["failed"].startswith("the adapter is worse than the base by ")
    assert result["failed"].endswith(
        "try a smaller --lr (it was 1000) or fewer --steps; adapter.npz is written nevertheless"
    )
    assert not (folder / "adapter.run.npz").exists()


def test_worse_by_less_than_the_loss_varies_is_not_reported():
    model = ml.load_base()
    checks = windows(model, data.load_text("kjv"), 3, 16)[:2]
    each = [ml.evaluate(model, [(x[None], y[None])]) for xs, ys in checks for x, y in zip(xs, ys)]
    spread, base = np.std(each), np.mean(each)
    lora.attach(model, ml.LoRAConfig(targets="q"), rng=0)
    for _, layer in model.named_modules():
        if isinstance(layer, lora.Adapter):
            layer.B.data[...] = 1.0  # a useless adapter: only the losses of the base count
    for more, fine in ((-1, True), (0, True), (0.9, True), (1.1, False)):
        message = finetune._worse(model, checks, base, base + more * spread)
        assert (message == "") is fine, more
    assert f"base varies by {spread:.4f} from" in message
    assert f"worse than the base by {1.1 * spread:.4f} nats" in message
    assert not [p for p in model.parameters() if p.grad is not None]


def test_account_compares_full_with_lora(capsys, backend):
    on_host = backend.on_host  # a device's pool allocates entire blocks
    near, near_peak = (0.01, 0.01) if on_host else (0.03, 0.1)  # unblocked ops: larger scratch
    result = run("account --batch 1 --window 16 --r 2", capsys)
    assert result["lora"]["trainable"] == 4 * 2 * 2 * 320
    for side in result.values():
        for name, row in side["bytes"].items():
            allowed = near_peak if name == "peak" else near
            assert row["measured"] == pytest.approx(row["predicted"], rel=allowed)
    bytes_of = {name: side["bytes"]["total"]["measured"] for name, side in result.items()}
    assert bytes_of["lora"] < bytes_of["full"]


@once
def test_account_shows_what_recomputing_and_a_narrow_base_save(capsys):
    line = "account --batch 4 --window 64"
    usual, less = run(line, capsys), run(f"{line} --recompute --base-dtype float16", capsys)
    for name in ("activations", "peak"):
        assert all(less[m]["bytes"][name]["measured"] < usual[m]["bytes"][name]["measured"]
                   for m in ("full", "lora"))
    frozen = [side["lora"]["bytes"]["frozen weights"]["measured"] for side in (usual, less)]
    assert 0.5 <= frozen[1] / frozen[0] < 0.51


@once
@pytest.mark.parametrize(("shape", "least"), [
    ("gpt2-medium", 700e6), pytest.param("gpt3-175b", 300e9, marks=pytest.mark.thorough)])
def test_account_of_a_named_shape_is_its_plan(shape, least, capsys):
    line = f"account {shape} --r 4 --targets q,v --window 16 --policy mixed --recompute --plain"
    result = run(line, capsys)
    planned = accounting.plan(
        shape, r=4, targets=("q", "v"), tokens=16, policy="mixed", recompute=True,
        plain=True,
    )
    assert result == planned.as_dict() and result["bytes"]["frozen weights"] > least
    assert cli.main(["account", "gpt2", "--method", "full", "--window", "8"]) == 0
    assert "gpt2: full, 1 × 8 tokens" in capsys.readouterr().out


GIVEN = {"r": "2", "alpha": "3", "targets": "k,o", "dropout": "0.5", "bias": "lora",
         "layers": "1,3", "lp": "2", "li": "1"}
READ = {"r": 2, "alpha": 3.0, "targets": ("k", "o"), "dropout": 0.5, "bias": "lora",
        "layers": (1, 3), "lp": 2, "li": 1}


@once
@pytest.mark.parametrize("method", kept(methods.METHODS, *[*methods.METHODS][::3]))
def test_a_method_gets_its_own_options_and_no_others(method, capsys, monkeypatch):
    small = ml.GPT2Config(vocab_size=90, n_positions=32, d_model=24, n_layers=4, n_heads=3)
    monkeypatch.setitem(accounting.SHAPES, "gpt2", small)
    kind, line = methods.METHODS[method], f"account gpt2 --window 4 --method {method}"
    own = [field.name for field in dataclasses.fields(kind) if field.name in GIVEN]
    plan = accounting.plan("gpt2", method=kind(**{name: READ[name] for name in own}), tokens=4)
    assert run(" ".join([line, *(f"--{name} {GIVEN[name]}" for name in own)]), capsys) == (
        plan.as_dict()
    )
    assert run(line, capsys)["title"] == accounting.plan("gpt2", method=kind(), tokens=4).title
    for name in GIVEN.keys() - set(own):
        assert cli.main([*line.split(), f"--{name}", GIVEN[name]]) == 2
        message = capsys.readouterr().err
        settings = f"{method} has --{', --'.join(own)}\n" if own else f"{method} has no settings\n"
        assert message.startswith(f"minilora: --{name} is for ") and message.endswith(settings)


@once
def test_the_base_takes_the_options_of_lora(capsys):
    line = "account --batch 1 --window 8"
    usual, other = run(line, capsys), run(f"{line} --r 2 --bias all --dropout 0.5", capsys)
    biases = sum(p.data.size for name, p in ml.load_base().named_parameters() if name[-2:] == ".b")
    assert usual["lora"]["trainable"] == 4 * 2 * 8 * 320
    assert other["lora"]["trainable"] == 4 * 2 * 2 * 320 + biases
    assert usual["full"]["trainable"] == other["full"]["trainable"]


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


def test_finetune_recomputes_to_the_same_adapter(folder, capsys):
    line = "finetune words.txt --steps 3 --batch 2 --window 16 --checks 1 --dropout 0.2"
    run(f"{line} --out one.npz", capsys)
    run(f"{line} --out two.npz --recompute", capsys)
    with np.load("one.npz") as one, np.load("two.npz") as two:
        arrays = [name for name in one.files if one[name].dtype.kind == "f"]
        assert arrays and all(np.array_equal(one[a], two[a.replace("one", "two")]) for a in arrays)


def test_dtype_reaches_the_model_and_scales_the_loss(folder, monkeypatch):
    asked = {}

    def fit(model, *_, loss_scale=None, **settings):
        asked.update(dtype=str(model.ln_f.g.dtype), scale=loss_scale)
        raise ValueError("enough")

    monkeypatch.setattr(finetune, "fit", fit)
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1 --dtype"
    for dtype in ("float16", "float32"):
        assert cli.main([*line.split(), dtype]) == 2
        assert asked["dtype"] == dtype and (asked["scale"] is not None) == (dtype == "float16")


def test_finetune_in_half_precision_learns_with_a_scaled_loss(folder, capsys):
    line = "finetune words.txt --out fox.npz --steps 4 --batch 1 --window 8 --checks 1"
    half = run(f"{line} --dtype float16", capsys)
    run("generate --adapter fox.npz --tokens 2 --base-dtype float16", capsys)  # without a warning
    full = run(line, capsys)
    assert half["after"] < half["before"] and abs(half["after"] / full["after"] - 1) < 0.01


SAMPLES = Path(__file__).parent / "samples"


def write(folder, kind):
    """Write a file of this kind, of known content; return its path."""
    path, model = folder / f"{kind}.npz", gpt2(dtype="float32")
    if kind == "model":
        return ml.save_model(model, path, dtype="float16", about={"trained_on": "plays"})
    if kind == "run":
        optimizer = ml.AdamW(model.trainable_parameters())
        steps = data.Windows(np.arange(99) % 7, 2, 4)
        ml.fit(model, steps, optimizer, 2, checkpoint=path, progress=False, about={"--lr": 0.1})
        return path
    if kind == "other":
        return checkpoint.write(path, {"x": np.arange(3)}, {"kind": "notes"})
    if kind == "combined":
        lora.attach(model, ml.LoRAConfig(r=2, targets="q"), name="a", rng=0)
        lora.attach(model, ml.LoRAConfig(r=1, targets="v"), name="b", rng=1)
        lora.combine(model, {"a": 0.5, "b": 2.0}, name=kind)
    else:
        methods.apply(model, kind, name=kind.replace("+", "-"), rng=0)
    return lora.save(model, path, model.adapters.active[-1] if kind != "combined" else kind)


@once
@pytest.mark.parametrize("kind", ["model", "run", "other", "combined", *methods.METHODS])
def test_info_tells_what_is_in_a_file(kind, folder, capsys):
    path = write(folder, kind)
    arrays, meta = checkpoint.read(path)
    facts = run(f"info {path}", capsys)
    assert cli.main(["info", str(path)]) == 0
    shown = capsys.readouterr().out
    assert all(re.search(rf"^{name.replace('_', ' ')} ", shown, re.MULTILINE) for name in facts)
    assert facts["made_by"] == f"minilora {ml.__version__}"
    assert facts["bytes"] == path.stat().st_size and facts["arrays"] == len(arrays)
    assert facts["numbers"] == sum(array.size for array in arrays.values())
    assert facts["dtype"] == sorted({str(array.dtype) for array in arrays.values()})
    if kind == "model":
        sizes = dataclasses.asdict(gpt2().config)
        assert facts["family"] == "gpt2" and facts["sizes"] == sizes and facts["merged"] == []
        assert facts["about"] == {"trained_on": "plays"} and facts["tokenizer"] == "none"
    elif kind == "run":
        assert facts["kind"] == kind and (facts["steps_done"], facts["steps"]) == (2, "2")
        assert facts["about"] == {"--lr": "0.1"} and facts["optimizer"] == "'AdamW'"
        assert facts["last_loss"] == arrays["losses"][-1]
    elif kind == "other":
        assert facts["kind"] == "notes" and "name" not in facts
    else:
        assert facts["kind"] == "adapter" and facts["base"] == meta["base"]
        assert facts["method"] == ("lora" if kind in ("combined", "pissa") else kind)
        settings = {**facts["settings"], **facts}
        assert meta["settings"].items() <= settings.items()
        assert facts["base_is"] == "another base" and facts["adapted_layers"] == len(meta["scales"])


@once
@pytest.mark.parametrize("path", sorted(SAMPLES.glob("*.npz")), ids=lambda path: path.stem)
def test_info_tells_what_is_in_a_file_of_0_1_0(path, capsys):
    facts, meta = run(f"info {path}", capsys), checkpoint.read(path)[1]
    assert facts["made_by"] == "unknown" and facts["kind"] == meta["kind"]
    if meta["kind"] == "model":
        assert facts["family"] == meta["family"] and facts["sizes"] == meta["config"]
    else:
        assert facts["name"] == meta["name"] and facts["base"] == meta["base"]
        assert facts["method"] == meta.get("method", "lora")
        kept = meta.get("settings") or meta.get("config", {})
        assert {**facts["settings"], **facts} == {**facts["settings"], **facts, **kept}


@once
def test_info_tells_the_base_of_an_adapter_and_the_adapters_of_a_model(shelf, capsys):
    fox, plain = (run(f"info {shelf}/{name}.npz", capsys) for name in ("fox", "plain"))
    assert fox["base_is"] == "shakespeare" and plain["merged"] == [fox["fingerprint"]]
    assert run(f"info {shelf}/half.npz", capsys)["base_is"] == "shakespeare, in float16"
    assert run(f"info {shelf}/small.npz", capsys)["base_is"] == "another base"
    base = Path(data.__file__).parent / "bases" / "shakespeare.npz"
    assert run(f"info {base}", capsys)["tokenizer"] == "1,024 tokens"


@once
@pytest.mark.parametrize(("meta", "words"), [
    ({"kind": "adapter"}, "its meta.json has no 'name'"),
    ({"kind": "adapter", "name": "a", "base": "0", "settings": [], "scales": {}}, "is the list []"),
    ({"kind": "adapter", "name": "a", "base": "0", "layers": 5}, "its meta.json has no 'config'"),
    ({"kind": "model", "family": "gpt2", "config": {}, "merges": 4}, "'merges' of its meta"),
    ({"kind": "run", "what": 0, "done": 1}, "'what' of its meta.json is 0"),
])
def test_info_refuses_a_file_whose_facts_are_wrong(meta, words, folder, capsys):
    checkpoint.write(folder / "a.npz", {}, meta)
    assert cli.main(["info", "a.npz"]) == 2
    out, err = capsys.readouterr()
    assert not out and err.startswith("minilora: a.npz: ") and words in err


@once
def test_a_version_that_cannot_be_one_is_unknown(folder, capsys):
    for made_by in ("\x1b[2J", "x" * 99, ["a\nb"]):
        checkpoint.write(folder / "a.npz", {}, {"kind": "\x1b", "made_by": made_by})
        assert run("info a.npz", capsys)["made_by"] == "unknown"
        assert cli.main(["info", "a.npz"]) == 0 and "\x1b" not in capsys.readouterr().out


def test_info_prints_versions(capsys):
    result = run("info", capsys)
    assert result["numpy"] == np.__version__ and "cupy" in result["devices"].lower()


def test_options_before_the_command_equal_those_after_it(capsys, backend):
    before = ml.threads()
    try:
        assert cli.main(["--json", "--plain", "--threads", "1", "info"]) == 0
        assert json.loads(capsys.readouterr().out)["numpy"] == np.__version__
        assert backend.plain and ml.threads() == 1
    finally:
        ml.threads(before)
    texts = [run(line, capsys) for line in (
        "--seed 3 generate --tokens 8", "generate --tokens 8 --seed 3", "generate --tokens 8",
        "--seed 4 generate --tokens 8 --seed 3",
    )]
    assert texts[0] == texts[1] == texts[3] != texts[2]
    assert not backend.plain


@once
def test_every_option_of_generate_reaches_the_function(capsys, monkeypatch):
    def record(model, ids, tokens, **settings):
        settings.pop("begins")()  # shows progress
        calls.append({"ids": [row.tolist() for row in ids], "tokens": tokens, **settings})
        return ids

    calls = []
    monkeypatch.setattr(generate, "generate", record)
    encode = ml.load_base().tokenizer.encode
    run("generate --prompt 'To be,\\nor not' --tokens 3 --temperature 0.5 --top-k 4 --top-p 0.6 "
        "--seed 7 --no-cache --prompt I --stop '\\n\\n' --stop . --repetition-penalty 1.5", capsys)
    run("generate", capsys)
    assert calls == [
        {"ids": [encode("To be,\nor not").tolist(), encode("I").tolist()], "tokens": 3,
         "temperature": 0.5, "top_k": 4, "top_p": 0.6, "rng": 7, "cache": False,
         "stop": ["\n\n", "."], "repetition_penalty": 1.5},
        {"ids": [encode("\n").tolist()], "tokens": 100, "temperature": 0.8, "top_k": None,
         "top_p": 0.95, "rng": 0, "cache": True, "stop": None, "repetition_penalty": None},
    ]


class Terminal(io.StringIO):
    """A terminal that knows when it was flushed; `full` stops the command, as Ctrl-C does."""

    def __init__(self, full: int = 10**9):
        super().__init__()
        self.full, self.shown = full, [""]

    def isatty(self):
        return True

    def flush(self):
        if self.getvalue() != self.shown[-1]:
            self.shown.append(self.getvalue())
        if len(self.shown) > self.full:
            self.full = 10**9
            raise KeyboardInterrupt


@once
@pytest.mark.parametrize("stop", ["", "--stop a", "--stop ' the '"])
def test_a_terminal_shows_the_text_as_it_comes(capsys, monkeypatch, stop):
    line = shlex.split(f"generate --prompt 'My lord' --tokens 20 --seed 3 {stop}")
    assert cli.main(line) == 0
    piped = capsys.readouterr()
    with monkeypatch.context() as patch:
        patch.setattr("sys.stdout", terminal := Terminal())
        assert cli.main(line) == 0
    assert terminal.getvalue() == piped.out and capsys.readouterr().err == piped.err
    assert terminal.shown[1] == "My lord" and len(terminal.shown) > (2 if stop else 9)
    if stop:
        assert shlex.split(stop)[1] not in piped.out


@once
def test_an_interrupt_ends_the_line_of_the_terminal(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdout", terminal := Terminal(full=5))
    assert cli.main(shlex.split("generate --prompt 'My lord' --tokens 50")) == 130
    assert terminal.getvalue() == terminal.shown[5] + "\n"
    assert capsys.readouterr().err == "minilora: interrupted; nothing new was saved\n"


@once
def test_each_prompt_has_its_own_adapter(shelf, capsys, monkeypatch):
    monkeypatch.chdir(shelf)
    line = "generate --tokens 7 --temperature 0"
    elk, owl, base = ([run(f"{line} --prompt {prompt}{adapter}", capsys) for prompt in ("I", "the")]
                      for adapter in (" --adapter elk.npz", " --adapter owl.npz", ""))
    assert len({each["text"] for each in (elk[0], owl[0], base[0])}) == 3
    both = f"{line} --adapter elk.npz --adapter owl.npz"
    for ask, (one, two) in (
        (f"{both} --prompt I --prompt the", (elk[0], owl[1])),
        (f"{both} --prompt I", (elk[0], owl[0])),
        (f"{line} --adapter owl.npz --prompt I --prompt the", owl),
        (f"{line} --adapter owl.npz --adapter owl.npz --prompt I --prompt the", owl),
        (f"{line} --prompt I --prompt the", base),
    ):
        assert run(ask, capsys) == {
            "texts": [one["text"], two["text"]], "ids": [one["ids"], two["ids"]]
        }
    assert cli.main(shlex.split(f"{both} --prompt I")) == 0
    said = f"[elk.npz]\n{elk[0]['text']}\n\n[owl.npz]\n{owl[0]['text']}\n\n"
    assert capsys.readouterr() == (said, "")
    assert cli.main(shlex.split(f"{line} --prompt I --prompt the")) == 0
    said = f"[1]\n{base[0]['text']}\n\n[2]\n{base[1]['text']}\n\n"
    assert capsys.readouterr() == (said, "")


@once
def test_base_dtype_is_the_dtype_of_the_base(shelf, monkeypatch):
    monkeypatch.chdir(shelf)
    dtypes = []
    monkeypatch.setattr(generate, "generate", lambda model, ids, *_, **__: dtypes.append(
        str(model.blocks[0].attn.q.base.W.data.dtype)) or ids)
    for option in ([], ["--base-dtype", "float16"]):
        with warnings.catch_warnings(action="ignore"):
            assert cli.main(["generate", "--adapter", "half.npz", *option]) == 0
    assert dtypes == ["float32", "float16"]


@once
@pytest.mark.parametrize("option", ["--help", "-h", "--version"])
def test_help_and_version_need_no_command(option, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([option])
    out = capsys.readouterr().out
    assert stop.value.code == 0
    names = [ml.__version__] if "v" in option else command_line().commands
    assert all(name in out for name in names)


@once
@pytest.mark.skipif(os.name != "posix", reason="named pipes are POSIX's")
def test_a_text_may_come_from_a_pipe(folder):
    os.mkfifo(folder / "pipe")
    writer = threading.Thread(target=(folder / "pipe").write_text, args=("To be",), daemon=True)
    writer.start()
    assert inputs.text("pipe") == "To be"
    writer.join()


def test_names_are_separated_by_commas_and_blanks_are_ignored():
    assert parse(["account", "--targets", " q , *.v,"]).targets == ("q", "*.v")


COMMANDS = {command.name: command for command in command_line().leaves()}  # such as "ex check"
NEEDED = {
    "finetune": ["kjv"], "sweep": ["sweep.toml"], "merge": ["--adapter", "a.npz"],
    "reproduce": ["counts"],
    "tutorials run": ["01"], "tutorials notebook": ["01"], "ex grade": ["class"],
    "ex dev new": ["14_name"],
    **{f"ex {name}": ["01"] for name in ("check", "hint", "solution", "reset", "milestone")},
}
VALUES = {"--seed": ["3"], "--backend": ["cupy:1"], "--threads": ["2"], "--plain": [], "--json": []}


@once
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("option", parser.COMMON)
def test_each_common_option_may_stand_on_either_side_of_each_command(command, option):
    line, given = [*command.split(), *NEEDED.get(command, [])], [option, *VALUES[option]]
    after = parse([*line, *given])
    assert parse([*given, *line]) == after != parse(line)
    assert parse([line[0], *given, *line[1:]]) == after
    if VALUES[option]:
        assert parse([f"{option}={given[1]}", *line]) == after
        assert (
            parse([option, {"--backend": "numpy"}.get(option, "7"), *line, *given]) == after
        )


OPTIONS = [
    (name, option) for name, command in COMMANDS.items() for option in command.options
    if option.startswith("--") and (name, option) != ("ex grade", "--json")  # tested below
]
# Any text is a value of these.
FREE = {"--base", "--adapter", "--prompt", "--stop", "--targets", "--engines", "--shapes", "--only",
        "--data", "--eval", "--export", "--live"}
FOLDERS = {("tutorials build", "--out"), ("tutorials serve", "--out"),
           ("tutorials notebook", "--out"), ("reproduce", "--out"), ("sweep", "--out")}
FLAGS = {"--plain", "--json", "--recompute", "--restart", "--no-cache", "--no-whole",
         "--give-up", "--compare", "--force", "--list", "--markdown", "--verbose",
         "--fast", "--from-runs", "--check", "--dry-run"}


@once
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_each_option_refuses_bad_values_by_its_name(command, option):
    line = [*command.split(), *NEEDED.get(command, [])]
    with pytest.raises(ValueError, match=f"^{option} (needs a|takes no) value"):
        parse([*line, f"{option}=x"] if option in FLAGS else [*line, option])
    if option in FLAGS | FREE or (command, option) in FOLDERS:
        return
    for bad in ("bad", "", "nan", "inf", "-1", "1e3", "0x1", "1.5", "9" * 20):
        try:
            parse([*line, f"{option}={bad}"])
        except ValueError as error:
            message = str(error)
            begins = rf"{option} {re.escape(bad or repr(bad))}[: ]"
            assert re.match(rf"{begins}.*\b(give|choose) ", message), message
            assert not re.search("argument|invalid|Error", message), message
        else:
            assert bad in ("1e3", "1.5", "9" * 20), bad
            assert option in ("--lr", "--alpha", "--temperature", "--repetition-penalty")


@once
def test_only_ex_grade_takes_a_file_after_json(folder, capsys):
    assert parse(["ex", "status", "--json"]).json is True
    assert str(parse(["ex", "grade", "class", "--json", "all.json"]).json) == "all.json"
    with pytest.raises(ValueError, match=r"^--json all\.txt: give a name that ends in \.json"):
        parse(["ex", "grade", "class", "--json=all.txt"])
    assert cli.main(["ex", "status", "--json", "all.json"]) == 2
    assert "ex status takes no file after --json: only ex grade does" in capsys.readouterr().err


@once
@pytest.mark.parametrize(("command", "option"), OPTIONS)
def test_a_swapped_letter_is_a_near_miss(command, option):
    letters = option[2:]
    if len(letters) > 2:
        typed = f"--{letters[0]}{letters[2]}{letters[1]}{letters[3:]}"
        message = parser.meant(typed, COMMANDS[command].options, "none")
        assert message == f"{typed}: did you mean {option}?" or typed == option


@once
def test_words_that_are_not_near_are_not_suggested():
    for word in ("--continue", "--text", "--adapter", "--file", "--x", "--quiet"):
        every = {option for _, option in OPTIONS if option != word}
        assert parser.meant(word, every, "none") == f"{word}: none"
    assert parser.meant("--lora-alpha", ["--alpha"], "none").endswith("did you mean --alpha?")
    assert parser.meant("--lr", ["--lp", "--li"], "none") == "--lr: none"
    for a, b, n in (("steps", "steps", 0), ("stpes", "steps", 1), ("setps", "steps", 1),
                    ("step", "steps", 1), ("stteps", "steps", 1), ("sleps", "steps", 1),
                    ("", "ab", 2), ("ab", "ba", 1), ("abc", "ca", 3), ("x", "abc", 3)):
        assert parser.edits(a, b) == parser.edits(b, a) == n, (a, b)


# What people type who come from scripts of PEFT, transformers and PyTorch: option -> what it means
# here; "" where there is no such thing.
FOREIGN_OPTIONS = {
    "--model_name_or_path": "--base", "--model-id": "--base", "--base_model": "--base",
    "--adapter_path": "--adapter", "--peft_model_id": "--adapter", "--lora_path": "--adapter",
    "--output_dir": "--out", "--output": "--out", "--save-path": "--out",
    "--lora_r": "--r", "--lora-rank": "--r", "--rank": "--r", "--lora_alpha": "--alpha",
    "--lora-dropout": "--dropout", "--target_modules": "--targets", "--learning_rate": "--lr",
    "--max_steps": "--steps", "--num_train_epochs": "", "--max_iters": "--steps",
    "--batch_size": "--batch", "--per_device_train_batch_size": "--batch",
    "--micro_batch_size": "--batch", "--block_size": "--window", "--max_seq_length": "--window",
    "--cutoff_len": "--window", "--gradient_checkpointing": "--recompute",
    "--gradient_accumulation_steps": "", "--torch_dtype": "--dtype", "--fp16": "--dtype",
    "--bf16": "--dtype", "--load_in_4bit": "--base-dtype", "--device": "--backend",
    "--max_new_tokens": "--tokens", "--temp": "--temperature", "--topk": "--top-k",
    "--num_beams": "", "--do_sample": "", "--repetition_penalty": "--repetition-penalty",
    "--warmup_steps": "",
    "--warmup_ratio": "", "--weight_decay": "", "--lr_scheduler_type": "", "--eval_steps": "",
    "--save_steps": "", "--logging_steps": "", "--report_to": "", "--push_to_hub": "",
    "--use_dora": "", "--num_workers": "--jobs", "--n_layers": "", "--hidden_size": "",
    "--do_train": "", "--do_eval": "", "--dataset_name": "", "--train_file": "", "--resume": "",
    "--adapter": "", "--text": "", "--lr": "", "--steps": "", "--layers": "", "--test": "",
    "--verbose": "--verbose", "--quiet": "", "--config": "", "--scale": "", "--stream": "",
    "--save_total_limit": "", "--local_rank": "", "--deepspeed": "", "--tokenizer": "",
    "--cache_dir": "", "--overwrite_output_dir": "--force", "--val_set_size": "", "--beta": "",
}


@once
@pytest.mark.parametrize("command", COMMANDS)
def test_an_option_of_another_package_is_answered_by_its_meaning_or_by_nothing(command):
    ours = COMMANDS[command].options
    for option, means in FOREIGN_OPTIONS.items():
        if option in ours:
            continue
        with pytest.raises(ValueError) as error:
            parse([*command.split(), option])
        message = str(error.value)
        suggested = re.findall(r"did you mean (\S+)\?", message)
        if remedy := COMMANDS[command].instead.get(option):
            assert message == f"{command} has no option {option}: {remedy}"
        else:
            assert suggested == [means] * (means in ours), message
        for named in re.findall(r"--[a-z][\w-]*", message.replace(option, "")):
            assert named in ours or named == "--help", message


@once
def test_each_command_has_only_its_own_options():
    common = set(parser.COMMON)
    own = {name: {o for o in command.options if o.startswith("--")} - common
           for name, command in COMMANDS.items()}
    assert own["ex check"] == own["ex watch"] == {"--verbose"} and not own["ex status"]
    assert own["ex grade"] == {
        "--only", "--executor", "--jobs", "--csv", "--html", "--gradescope", "--list", "--force"}
    assert own["tutorials serve"] == {"--out", "--port"} and not own["tutorials run"]


@once
def test_a_terminal_without_unicode_shows_question_marks(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    assert cli.main(["account", "gpt2", "--window", "8"]) == 0
    assert out.buffer.getvalue().startswith(b"gpt2: lora r=8 targets=q,v, 1 ? 8 tokens")


@once
@pytest.mark.parametrize("command", COMMANDS)
def test_help_describes_every_option_and_prints_its_default(command, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main([*command.split(), "--help"])
    text = " ".join(capsys.readouterr().out.split())
    assert stop.value.code == 0 and (f"usage: minilora {command} " in text)
    args = vars(parse([*command.split(), *NEEDED.get(command, [])]))
    for name, option in OPTIONS:
        default = args.get(option[2:].replace("-", "_"), None)
        hidden = command.startswith("ex ") and option in parser.COMMON  # or in words of its own
        if name == command and not hidden and isinstance(default, int | float) and (
            option not in FLAGS | FREE
        ):
            assert f"({default:g})" in text, option
    for option in COMMANDS[command]._actions:
        assert option.help, option.dest
    for name, default in {"r": 8, "alpha": 8, "targets": "q,v", "lp": 8, "li": 0}.items():
        if command == "account":
            assert re.search(rf" --{name} {name.upper()} ((?! --).)*\({default}\)", text)


@pytest.fixture(scope="module")
def shelf(tmp_path_factory):
    """A folder with good and bad files of every kind."""
    folder = tmp_path_factory.mktemp("shelf")
    (folder / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 400)
    (folder / "short.txt").write_text("a few words only\nand a few more\n" * 6)
    (folder / "one.txt").write_text("x")
    (folder / "two.txt").write_text("xy")
    (folder / "bytes.txt").write_bytes(b"abc\xff")
    for name in ("empty.txt", "empty.npz", "file.npz"):
        (folder / name).write_text("words\n" * (name == "file.npz"))
    (folder / "folder").mkdir()
    np.savez(folder / "numbers.npz", a=np.arange(3.0))
    model = ml.load_base()
    lora.attach(model, ml.LoRAConfig(targets="q"), name="fox", rng=0)
    shake(model.trainable_parameters().values(), 0)
    lora.save(model, folder / "fox.npz")
    assert cli.main(["merge", f"--adapter={folder}/fox.npz", f"--out={folder}/plain.npz"]) == 0
    for seed, name in enumerate(["owl", "elk"]):
        model = ml.load_base()
        lora.attach(model, ml.LoRAConfig(r=2, targets=("v", "up")), name="one", rng=seed)
        shake(model.trainable_parameters().values(), seed)
        lora.save(model, folder / f"{name}.npz")
    model = ml.load_base()
    lora.attach(model, ml.LoRAConfig(targets="q"), name="half", rng=0, base_dtype="float16")
    lora.save(model, folder / "half.npz")
    model = ml.load_base()
    lora.attach(model, ml.LoRAConfig(targets="q"), name="coded", rng=0, base_dtype="nf4")
    lora.save(model, folder / "coded.npz")
    deep = gpt2(n_layers=5)
    lora.attach(deep, ml.LoRAConfig(targets="q"), rng=0)
    lora.save(deep, folder / "deep.npz")
    small = gpt2(n_positions=12)
    ml.save_model(small, folder / "mute.npz")
    lora.attach(small, ml.LoRAConfig(targets="q"), rng=0)
    lora.save(small, folder / "small.npz")
    return folder


TEXT = "a file, or one of plays, kjv, devil"
BROKEN = "is not a minilora file, or it is damaged: it does not end as a .npz file does"
MISTAKES = {  # command line -> how the message begins
    "finetun kjv": "unknown command finetun: did you mean finetune?",
    "gen": "unknown command gen: did you mean generate?",
    "words.txt": "unknown command words.txt: choose finetune, sweep, generate, merge, account,",
    "''": "unknown command '': choose finetune, sweep, generate, merge, account, reproduce, info",
    "--stesp 3 finetune kjv": "unknown option --stesp: did you mean --steps?",
    "--zzz info": "unknown option --zzz: see `minilora --help`",
    "--zzz": "unknown option --zzz: see `minilora --help`",
    "--jsn info": "unknown option --jsn: did you mean --json?",
    "--window 3": "--window goes after its command: minilora finetune --window",
    "--steps 3 finetune kjv": "--steps goes after its command: minilora finetune --steps",
    "--steps 3 pretrain": "--steps goes after its command: minilora pretrain --steps",
    "--out a tutorials build": "--out goes after its command: minilora tutorials build --out",
    "ex --jobs 2 grade class": "--jobs goes after its command: minilora ex grade --jobs",
    "ex -v check 01": "-v goes after its command: minilora ex check -v",
    "ex --zzz check 01": "unknown option --zzz: see `minilora ex --help`",
    "finetune kjv --stpes 3": "finetune has no option --stpes: did you mean --steps?",
    "finetune kjv --wind 3": "finetune has no option --wind: did you mean --window?",
    "finetune --stpes=3": "finetune has no option --stpes: did you mean --steps?",
    "finetune --resume": "finetune has no option --resume: an interrupted run continues by itself;",
    "finetune kjv --adapter no.npz": "--adapter no.npz: there is no such file: give the .npz that",
    "finetune --text kjv": f"finetune has no option --text: the text is the first argument: {TEXT}",
    "finetune kjv --model a.npz": "finetune has no option --model: give --base",
    "finetune kjv --lora-alpha 8": "finetune has no option --lora-alpha: did you mean --alpha?",
    "finetune kjv -r 4": "finetune has no option -r: did you mean --r?",
    "finetune kjv --x 4": "finetune has no option --x: see `minilora finetune --help`",
    "generate --text To": "generate has no option --text: --prompt is the text to continue",
    "generate --steps 3": "generate has no option --steps: finetune, pretrain have it; see `minilo",
    "ex dev check 02 --seeds 30": "--seeds 30: give at most 20, the default",
    "ex hint 02 --jobs 2": "ex hint has no option --jobs: sweep, reproduce, ex grade have it; see ",
    "info word --zzz --aaa": "info has no option --zzz",
    "generate --zzz": "generate has no option --zzz: see `minilora generate --help`",
    "info now": "there is no file now",
    "info fox.npz now": "info takes no 'now': see `minilora info --help`",
    "info folder": "folder is a folder, not a file",
    "info words.txt": f"words.txt {BROKEN}",
    "info numbers.npz": "numbers.npz is not a minilora file, or it is damaged: it has no meta.json",
    "finetune kjv devil": "finetune takes no 'devil': see `minilora finetune --help`",
    "finetune": f"finetune needs a text: {TEXT}",
    "merge": "merge needs --adapter: the .npz that `minilora finetune` writes",
    "ex": "ex needs a command: init, status, check, watch, hint, solution, reset, milestone, grade",
    "ex dev": "ex dev needs a command: check, messages or new; see `minilora ex dev --help`",
    "ex dev odd": "ex dev has no command odd: choose check, messages or new",
    "finetune kjv --lr": "--lr needs a value; if it begins with -, write --lr=-...",
    "finetune kjv --lr -1e-3": "--lr needs a value; if it begins with -, write --lr=-...",
    "generate --no-cache=yes": "--no-cache takes no value: leave out 'yes'",
    "finetune kjv --steps -1": "--steps -1: give an integer >= 1",
    "finetune kjv --steps 2.5": "--steps 2.5: give an integer >= 1",
    "finetune kjv --r 0": "--r 0: give an integer >= 1",
    "finetune kjv --checks 0": "--checks 0: give an integer >= 1",
    "finetune kjv --batch 0": "--batch 0: give an integer >= 1",
    "finetune kjv --batch 9999999999": "--batch 9999999999: give an integer <= 1,000,000,000",
    "finetune kjv --window 0": "--window 0: give an integer >= 1",
    "finetune kjv --window 1000": "--window 1000: shakespeare reads 256 tokens: give 256 or less",
    "account gpt2 --window 1025": "--window 1025: gpt2 reads 1024 tokens: give 1024 or less",
    "finetune kjv --alpha 0": "--alpha 0: give a finite number > 0",
    "finetune kjv --lr nan": "--lr nan: give a finite number > 0",
    "finetune kjv --dropout 1": "--dropout 1: give a number in [0, 1)",
    "finetune kjv --dtype float8": "--dtype float8: choose float16, float32 or float64",
    "finetune kjv --base-dtype int4": "--base-dtype int4: choose float16, int8 or nf4",
    "finetune kjv --dtype float16 --base-dtype float16": "--base-dtype float16 repeats --dtype: le",
    "finetune kjv --targets ,": "--targets ,: give one name or more, separated by commas",
    "finetune kjv --targets zz": "--targets: no layer matches 'zz': choose from down, k, o, pos, q",
    "account gpt2 --targets zz": "--targets: no layer matches 'zz': choose from down, k, o, pos, q",
    "account --targets zz": "--targets: no layer matches 'zz': choose from down, k, o, pos, q",
    "account --r 0": "--r 0: give an integer >= 1",
    "account gpt5": "shape gpt5: did you mean gpt2?",
    "account gpt3": "shape gpt3: did you mean gpt3-175b?",
    "finetune kjv --base nowhere.npz": "nowhere.npz is neither a file nor a built-in base: give a",
    "finetune kjv --base fox.npz": "fox.npz holds an adapter, not a model: give it as --adapter",
    "info --seed -1": "--seed -1: give an integer >= 0",
    "info --threads 5000": "--threads 5000: give an integer <= 1,024",
    "info --backend cupi": "--backend cupi: give numpy, cupy, or cupy:1",
    "info --backend shapes": "--backend shapes: give numpy, cupy, or cupy:1",
    "generate --tokens -1": "--tokens -1: give an integer >= 0",
    "generate --temperature -1": "--temperature -1: give a finite number >= 0",
    "generate --temperature nan": "--temperature nan: give a finite number >= 0",
    "generate --top-p 2": "--top-p 2: give a number in (0, 1]",
    "generate --top-k 0": "--top-k 0: give an integer >= 1",
    "generate --prompt ''": r"--prompt '': give at least one character; \n is a new line",
    "generate --stop ''": r"--stop '': give at least one character; \n is a new line",
    "generate --repetition-penalty 0": "--repetition-penalty 0: give a finite number > 0",
    "generate --adapter fox.npz --adapter owl.npz --prompt a --prompt b --prompt c":
        "2 adapters for 3 prompts: give one --adapter for each --prompt, or one for all",
    "generate --prompt \udcff": r"--prompt '\udcff': give UTF-8 text",
    "generate --base-dtype float16": "--base-dtype float16 needs an adapter: give --adapter",
    "generate --base none": "none is neither a file nor a built-in base: give a model's .npz, or s",
    "generate --base folder": "folder/config.json is missing",
    "generate --base fox.npz": "fox.npz holds an adapter, not a model: give it as --adapter",
    "merge --adapter plain.npz": "plain.npz holds a model, not an adapter: give it as --base",
    "generate --base file.npz": f"file.npz {BROKEN}",
    "generate --base mini-encoder": "mini-encoder is a Bert, an encoder: give a decoder, such as "
                                    "shakespeare",
    "generate --base mute.npz": "mute.npz has no tokenizer: set model.tokenizer before save_model",
    "generate --adapter none.npz": "there is no file none.npz",
    "generate --adapter folder": "folder is a folder, not a file",
    "generate --adapter plain.npz": "plain.npz holds a model, not an adapter: give it as --base",
    "generate --adapter empty.npz": f"empty.npz {BROKEN}",
    "generate --adapter words.txt": f"words.txt {BROKEN}",
    "generate --adapter small.npz": "small.npz: ",
    "generate --adapter deep.npz":
        "deep.npz: it does not fit this model, which has no 'blocks.4.attn.q'",
    "merge --adapter half.npz": "half.npz was trained on this base in half precision: give --base-",
    "merge --adapter coded.npz": "coded.npz was trained on this base as nf4 codes: give --base-",
    "merge --adapter half.npz --base-dtype int8": "half.npz was trained on this base in half p",
    "merge --adapter fox.npz --base-dtype nf4": "fox.npz was trained on this base in full pre",
    "merge --adapter fox.npz --base-dtype float16": "fox.npz was trained on this base in full prec",
    "merge --adapter half.npz --base plain.npz": "half.npz was trained on a base other than plain.",
    "merge --adapter fox.npz --base plain.npz": "fox.npz is already merged into plain.npz: use the",
    "merge --adapter fox.npz --out fox.npz": "--out fox.npz exists and holds no model: give anothe",
    "merge --adapter fox.npz --out numbers.npz": "--out numbers.npz exists and holds no model: giv",
    "finetune kjv --out plain.npz": "--out plain.npz exists and holds no adapter: give another nam",
    "finetune kjv --out a.txt": "--out a.txt: give a name that ends in .npz, such as a.npz",
    "finetune kjv --out none/a.npz": "--out none/a.npz: none is not a folder: create it first, or",
    "finetune kjv --out folder": "--out folder is a folder: give the name of a file in it",
    "finetune kjv --out ''": "--out '' is not a file name: give one, such as out.npz",
    "finetune none.txt": f"none.txt is neither a file nor a built-in text: give {TEXT}",
    "finetune folder": "folder is a folder: give a text file",
    f"finetune {os.devnull}": f"{os.devnull} is a device: give a text file",
    "finetune bytes.txt": "bytes.txt is not UTF-8 text: byte 3 is 0xff: save it as UTF-8",
    "finetune empty.txt": "empty.txt is empty: give a longer text",
    "finetune one.txt": "one.txt is one character: give a longer text",
    "finetune two.txt": "two.txt has too few tokens: 1 to train on, 1 held out; a window of 128",
    "finetune short.txt": "short.txt has too few tokens: 70 to train on, 14 held out; a window of",
    "account gptt": "shape gptt: did you mean gpt2?",
    "account --method full": "--method needs a shape: account gpt2 --method full",
    "account --policy mixed": "--policy needs a shape: account gpt2 --policy mixed",
    "account --compare": "--compare needs a shape: account gpt2 --compare",
    "account --layers 2": "--layers needs a shape: account gpt2 --method adapter-d --layers 4",
    "account gpt2 --method adapter-h --alpha 3": "--alpha is for lora, dora, lora+preembed, lora",
    "account gpt2 --method full --lp 3": "--lp is for preembed, prelayer, lora+preembed or lora+pr",
    "account gpt2 --method adapter-d --layers x": "--layers x: give numbers of blocks from 0, sepa",
    "account gpt2 --method adapter-d --layers 12": "AdapterD: layers: unknown block 12",
    "account gpt2 --base-dtype float16": "account gpt2 has no --base-dtype: give --policy 'half ba",
    "account gpt2 --base-dtype nf4": "account gpt2 has no --base-dtype: give --policy 'nf4 base'",
    "account --batch 1000000000": "there is not enough memory (Unable to allocate 1.86 TiB for an",
    "bench --engines numpyy": "--engines numpyy: choose some of minilora, minilora full, minilora",
    "bench --shapes round": "unknown shape 'round': choose classroom, long, gpt2-small, tiny",
    "bench --shapes tiny:0": "unknown shape 'tiny:0': choose classroom, long, gpt2-small, tiny",
    "bench --shapes ''": "--shapes '' leaves nothing to measure: give one",
    "bench --rounds 0": "--rounds 0: give an integer >= 1",
    "bench --chart a.jpg": "--chart a.jpg: give a name that ends in .png or .svg or .pdf, such as",
    "pretrain --steps 0": "--steps 0: give an integer >= 1",
    "pretrain --out fox.npz": "--out fox.npz exists and holds no model: give another name, or remo",
}


@once
@pytest.mark.parametrize("line", MISTAKES)
def test_a_mistake_gets_one_sentence_and_returns_2(line, shelf, capsys, monkeypatch):
    monkeypatch.chdir(shelf)
    before = {path: path.read_bytes() for path in shelf.iterdir() if path.is_file()}
    assert cli.main(shlex.split(line)) == 2
    out, err = capsys.readouterr()
    assert not out and err.count("\n") == 1 and err.startswith(f"minilora: {MISTAKES[line]}")
    assert not FOREIGN.search(err.replace(r"\xff", "")) and len(err) < 330
    assert {path: path.read_bytes() for path in shelf.iterdir() if path.is_file()} == before


@once
@pytest.mark.parametrize(("line", "message"), [
    ("generate --adapter half.npz", "half.npz was trained on this base in half precision: give "),
    ("generate --adapter fox.npz --base plain.npz", "fox.npz is already merged into plain.npz: us"),
    ("account --r 161 --batch 1 --window 4 --targets 0.attn.q", "ΔW of blocks.0.attn.q has rank"),
])
def test_a_warning_is_a_line_without_a_source(line, message, shelf, capsys, monkeypatch):
    monkeypatch.chdir(shelf)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        assert cli.main([*line.split(), *["--tokens", "1"] * line.startswith("gen")]) == 0
    err = capsys.readouterr().err
    assert err.count("\n") == 1 and err.startswith(f"minilora: warning: {message}")


ERRORS = {
    "x": ValueError("x"), "no 'x'": KeyError("no 'x'"), "y": RuntimeError("y"),
    "there is not enough memory: try a smaller --batch or --r": MemoryError(),
    "there is no file a.npz": FileNotFoundError(2, "No such file or directory", "a.npz"),
    "a.npz: permission denied": PermissionError(13, "Permission denied", "a.npz"),
    "disk full": OSError("disk full"), "no way": OSError(5, "No way"),
    "z": OverflowError("z"), "deep": RecursionError("deep"),
    "end": EOFError("end"), "no cupy": ImportError("no cupy"), "nan": FloatingPointError("nan"),
}


@once
@pytest.mark.parametrize("message", ERRORS)
def test_an_error_is_printed_without_a_traceback(message, capsys, monkeypatch):
    def fails(*args, **settings):
        raise ERRORS[message]

    monkeypatch.setattr(generate, "generate", fails)
    assert cli.main(["generate"]) == 2
    assert capsys.readouterr() == ("", f"minilora: {message}\n")


@once
@pytest.mark.parametrize("error", [TypeError, AttributeError, IndexError, AssertionError])
def test_a_bug_keeps_its_traceback(error, monkeypatch):
    def fails(*args, **settings):
        raise error

    monkeypatch.setattr(generate, "generate", fails)
    with pytest.raises(error):
        cli.main(["generate"])


@once
@pytest.mark.skipif(os.name != "posix", reason="pipes are POSIX's")
def test_a_closed_pipe_ends_the_command_quietly():
    process = subprocess.Popen(
        [sys.executable, "-m", "minilora", "info"], stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(ml.__file__).parent.parent)},
    )
    process.stdout.close()
    with process.stderr:
        errors = process.stderr.read()
    assert process.wait() == 0 and errors == b""


@once
def test_a_file_that_is_replaced_is_announced(shelf, folder, capsys):
    (folder / "adapter.npz").write_bytes((shelf / "fox.npz").read_bytes())
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1"
    assert cli.main(line.split()) == 0
    assert "adapter.npz exists and will be replaced" in capsys.readouterr().out
    for name in ("base", "a.b"):  # names that an adapter cannot have
        run(f"{line} --out {name}.npz", capsys)


@once
def test_a_window_fits_the_base_and_the_text(folder, capsys):
    small = gpt2(dtype="float32", vocab_size=300, n_positions=12)
    small.tokenizer = data.BPE([])
    ml.save_model(small, folder / "small.npz")
    line = "finetune words.txt --base small.npz --steps 1 --batch 1 --checks 1"
    run(line, capsys)
    run(f"{line} --window 12", capsys)
    run("merge --base small.npz --adapter adapter.npz", capsys)
    (folder / "short.txt").write_text("abcdefgh\nj")
    assert cli.main(f"{line.replace('words', 'short')} --window 1".split()) == 2
    assert capsys.readouterr().err.endswith("needs 2 of each: give a longer text\n")
    (folder / "short.txt").write_text("a\nbcdefghij")
    assert cli.main(f"{line.replace('words', 'short')} --window 2".split()) == 2
    assert "few tokens: 2 to train on, 9 held out; a window of 2 needs 3" in (
        message := capsys.readouterr().err
    )
    assert message.endswith("give a longer text, or --window 1 or less\n")
    run(f"{line.replace('words', 'short')} --window 1", capsys)


@once
def test_a_wrong_merge_is_not_written(folder, shelf, capsys, monkeypatch):
    proof = SimpleNamespace(passed=False, as_dict=lambda: {"checks": {"float64": False}})
    monkeypatch.setattr(merge.lora, "verify", lambda model, ids: proof)
    assert cli.main(["merge", "--adapter", str(shelf / "fox.npz"), "--json"]) == 1
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert not result["passed"] and result["verified"] == {"checks": {"float64": False}}
    assert err.endswith(
        f"...\n{proof}\nminilora: the merge is wrong, see above: model.npz is not written\n")
    assert not list(folder.glob("*.npz"))


@once
def test_a_merged_model_knows_its_adapters(folder, capsys, monkeypatch):
    logits = SimpleNamespace(difference=0.0, bound=1.0)
    proof = SimpleNamespace(passed=True, as_dict=dict, logits=logits)  # not tested here
    monkeypatch.setattr(merge.lora, "verify", lambda model, ids: proof)
    line = "finetune words.txt --steps 1 --batch 1 --window 8 --checks 1 --out"
    run(f"{line} one.npz", capsys)
    run("merge --adapter one.npz --out one-in.npz", capsys)
    run(f"{line} two.npz --base one-in.npz --seed 1", capsys)
    run("merge --adapter two.npz --base one-in.npz --out both-in.npz", capsys)
    for adapter in ("one", "two"):
        assert cli.main(f"merge --adapter {adapter}.npz --base both-in.npz".split()) == 2
        assert f"{adapter}.npz is already merged into both-in.npz" in capsys.readouterr().err
    assert not (folder / "model.npz").exists()
    run(f"{line} wide.npz --dtype float64", capsys)  # the same base in another dtype
    run("merge --adapter wide.npz", capsys)


@once
def test_the_demo_prints_what_the_readme_shows(monkeypatch):
    """Only three of its steps run."""
    readme = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    block = readme.split("<!-- demo -->")[1].split("\n5. ")[0].partition("1. ")[2]
    models, lines = [], []

    def fit(model, batches, optimizer, steps, schedule, log_every, **how):
        models.append(model.state_dict())
        if len(models) == 2:
            raise InterruptedError
        rates = re.findall(r"step +(\d+)/(\d+) .* lr (\S+) ", block)
        assert rates == [(str(i), str(steps), f"{schedule(i - 1):.2e}")
                        for i in range(log_every, steps + 1, log_every)]
        assert optimizer.weight_decay == 0
        start = [schedule(i) for i in range(3)]
        return ml.fit(model, batches, optimizer, 3, schedule=start.__getitem__, log_every=1, **how)

    monkeypatch.setattr(demo, "fit", fit)
    result = demo.demo(0, lines.append)
    with pytest.raises(InterruptedError):
        demo.demo(0, lines.append)
    assert all(np.array_equal(a, models[1][name]) for name, a in models[0].items())

    def words(text):
        return {re.sub(r"-?\d[\d,.e:-]*|\s+", " ", line).strip() for line in text.splitlines()
                if not line.strip().startswith(("step", "(largest"))}

    assert {line for line in lines if line.startswith("LoRA, r")} <= {*block.splitlines()}
    assert words(block) <= words("\n".join(lines))
    assert re.search(r"held-out loss: (\S+) before", block)[1] == f"{result['before']:.3f}"
    assert result["after"] < result["before"] and result["same_sample"]
    assert 0 < result["difference"] <= result["bound"]
    assert result["lora"]["gradients"]["measured"] == 4 * result["trainable"]


# Nothing of the user's is overwritten.


@once
@pytest.mark.parametrize(("line", "kept", "remedy"), [
    ("tutorials notebook 07", "07_lora_layer.ipynb", "give another name with -o, or --force"),
    ("tutorials notebook 07 -o mine.ipynb", "mine.ipynb", "another name with -o, or --force"),
    ("bench --shapes tiny --rounds 1 --chart time.svg", "time.svg", "another name, or --force"),
    ("pretrain --out poet.npz", "poet.log", "give another --out, or move it first"),
    ("pretrain --out poet.npz", "poet.npz", "give another name, or remove it first"),
    ("pretrain --out poet.npz --restart", "poet.run.npz", "give another --out, or move it first"),
    ("finetune kjv --out poet.npz", "poet.npz", "give another name, or remove it first"),
    ("finetune kjv --out poet.npz --restart", "poet.run.npz", "give another --out, or move it "),
    ("merge --adapter fox.npz --out poet.npz", "poet.npz", "another name, or remove it first"),
    ("tutorials build -o site", "site/index.html", "give another name, or remove it first"),
])
@pytest.mark.parametrize("content", [b"", b"mine", b"\xff\x00", b"PK\x05\x06" + bytes(18)])
def test_a_file_of_the_users_stays(line, kept, remedy, content, folder, shelf, monkeypatch, capsys):
    if line.startswith("tutorials") and not BUILDS:
        pytest.skip("needs pip install '.[tutorials]'")
    for work in ("minilora.cli.bench.bench", "minilora.pretrain.pretrain",
                 "minilora.cli.finetune.fit"):
        monkeypatch.setattr(work, lambda *_, **__: pytest.fail("it began to work"))
    (folder / "fox.npz").write_bytes((shelf / "fox.npz").read_bytes())
    (folder / kept).parent.mkdir(exist_ok=True)
    (folder / kept).write_bytes(content)
    before = sorted(folder.rglob("*"))
    assert cli.main(line.split()) == 2
    err = capsys.readouterr().err
    assert remedy in err and Path(kept).parts[0] in err and err.count("\n") == 1
    assert (folder / kept).read_bytes() == content and sorted(folder.rglob("*")) == before


@once
def test_another_kind_of_file_where_a_run_is_kept_stays(folder, shelf, capsys):
    fox = (shelf / "fox.npz").read_bytes()
    (folder / "poet.run.npz").write_bytes(fox)
    for line in ("finetune kjv --out poet.npz --restart", "pretrain --out poet.npz --restart"):
        assert cli.main(line.split()) == 2
        assert "poet.run.npz exists and holds no run" in capsys.readouterr().err
    assert (folder / "poet.run.npz").read_bytes() == fox


@once
@builds
def test_force_replaces_and_an_equal_file_needs_none(folder, monkeypatch, capsys):
    line = ["tutorials", "notebook", "07"]
    assert cli.main(line) == 0
    book = folder / "07_lora_layer.ipynb"
    written = book.read_bytes()
    assert cli.main(line) == 0 and book.read_bytes() == written
    book.write_bytes(written.replace(b"LoRA", b"LORA", 1))
    assert cli.main(line) == 2 and book.read_bytes() != written
    assert cli.main([*line, "--force"]) == 0 and book.read_bytes() == written
    (folder / "poet.log").write_text("numpy; seed 0; 3600 steps of 16 x 256 tokens\nstep 1\n")
    asked = []
    monkeypatch.setattr(
        "minilora.pretrain.pretrain",
        lambda out, **_: asked.append(out) or (None, ml.History(held_out=[(0, 1.0)])))
    assert cli.main(["pretrain", "--out", "poet.npz"]) == 0 and asked  # its own log


@once
def test_long_work_says_how_far_it_is_and_why_so_many_tokens(capsys, monkeypatch):
    lines, begun = [], []

    class Spy(streams.Progress):
        def __call__(self, what=""):
            begun.append((what, len(lines)))

    monkeypatch.setattr("minilora.cli.account.Progress", Spy)
    args = parse(["account", "gpt2", "--compare", "--window", "4"])
    args.command(args, lines.append)
    labels = [accounting.label(method) for method in accounting.COMPARED]
    first = next(i for i, line in enumerate(lines) if line.startswith("full"))
    assert begun == [(label, first + i) for i, label in enumerate(labels)]  # rows as they come
    assert lines[0] == "gpt2: 1 × 4 tokens, AdamW, float32"
    monkeypatch.setattr(accounting, "plan", stopped())
    with pytest.raises(KeyboardInterrupt):
        args = parse(["account", "gpt3-175b", "--compare"])
        args.command(args, lines.append)
    assert "gpt3-175b: 1 × 1,784 tokens, AdamW, float32" in lines
    assert "1,784 tokens in every row: it reads 2,048, and preembed lp=256 li=8 takes 264" in lines


@once
def test_one_place_has_the_defaults_of_lora(capsys):
    ours = lora.LoRAConfig()
    chosen = cli.settings.method(parse(["finetune", "kjv"]))
    assert isinstance(chosen, methods.LoRA) and chosen == methods.LoRA()
    assert ours == demo.CONFIG
    title = accounting.plan("gpt2", tokens=4).title
    assert title.startswith(f"gpt2: {accounting.label(methods.LoRA())}, ")
    assert (methods.LoRA().r, methods.LoRA().alpha, methods.LoRA().targets) == (
        ours.r, ours.alpha, ours.targets)
    for command in ("finetune", "account"):
        text = " ".join(COMMANDS[command].format_help().split())
        for value in (f"({ours.r})", f"({ours.alpha:g})", f"({','.join(ours.targets)})"):
            assert value in text
