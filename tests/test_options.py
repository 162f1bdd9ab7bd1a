"""Every public option acts, or is refused, or says that it cannot: a walk over all of them.

Each owner of options has a function of settings -> result, and two values of every option. A new
option fails here until it has a line.
"""

import contextlib
import dataclasses
import inspect
import json
import shlex
import warnings

import numpy as np
import pytest
from conftest import THOROUGH
from strategies import gpt2, ids, normal, shake

import minilora as ml
from minilora import cli, data, lora, methods, nn, optim
from minilora.cli import command_line
from minilora.pretrain import pretrain

pytestmark = pytest.mark.usefixtures("numpy_only")
BATCHES = [(ids(i, 4, 6), ids(i + 9, 4, 6)) for i in range(6)]


def state(model) -> bytes:
    return b"".join(a.tobytes() + name.encode() for name, a in model.state_dict().items())


# The methods' configs.

METHOD = {  # option -> settings of the first run, and of the second
    "r": ({"r": 2}, {"r": 3}),
    "alpha": ({"alpha": 3.0}, {"alpha": 5.0}),
    "targets": ({"targets": "q"}, {"targets": "v"}),
    "dropout": ({}, {"dropout": 0.5}),
    "init": ({}, {"init": "kaiming"}),
    "bias": ({}, {"bias": "all"}, {"bias": "lora"}),
    "trainable": ({}, {"trainable": "ln_f"}),
    "rank_pattern": ({}, {"rank_pattern": {"blocks.0.attn.q": 1}}),
    "alpha_pattern": ({}, {"alpha_pattern": {"blocks.0.attn.q": 1.0}}),
    "lp": ({"lp": 1}, {"lp": 2}),
    "li": ({}, {"li": 1}),
    "layers": ({"layers": (0,)}, {"layers": (1,)}),
    "fused": ({}, {"fused": ()}),
    "head": ({"targets": "tok"}, {"targets": "tok", "head": True}),
    "dora": ({}, {"dora": True}),
    "rslora": ({}, {"rslora": True}),
}
REFUSED = {
    ("pissa", "init"): r'init="kaiming" has no effect',
    ("peft-lora", "rank_pattern"): r"attn\.q and .*attn\.v share one A",
}


def attached(name: str, train, **settings) -> bytes:
    """Attach a method to a model in eval mode, and train it in one of three ways."""
    model = gpt2().eval()
    if "lp" in [option.name for option in dataclasses.fields(methods.METHODS[name])]:
        settings = {"lp": 1, **settings}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "attach: in eval mode")
        methods.apply(model, name, rng=1, **settings)
    modes = [module.training for _, module in model.named_modules()]
    with methods.prompt(3):
        train(model, optim.AdamW(model.trainable_parameters(), 0.01))
        assert modes == [module.training for _, module in model.named_modules()]
        return state(model)


def by_fit(model, optimizer):
    ml.fit(model, BATCHES, optimizer, 3, progress=False)


def by_steps(model, optimizer):
    for batch in BATCHES[:3]:
        ml.train_step(model, [batch], optimizer)


@pytest.mark.parametrize("train", [by_fit, by_steps])
@pytest.mark.parametrize("name", methods.METHODS)
def test_every_option_of_a_method_acts(name, train):
    if not THOROUGH and (train is by_steps) == ([*methods.METHODS].index(name) % 2):
        pytest.skip("one loop for each method")
    for option in dataclasses.fields(methods.METHODS[name]):
        runs = METHOD[option.name]
        if (name, option.name) in REFUSED:
            with pytest.raises(ValueError, match=REFUSED[name, option.name]):
                attached(name, train, **runs[1])
            continue
        results = {attached(name, train, **settings) for settings in runs}
        assert len(results) == len(runs), option.name


@pytest.mark.parametrize("train", [by_fit, by_steps])
def test_a_models_own_dropout_acts_in_any_mode(train):
    def trained(mode, rate):
        model = gpt2(dropout=rate).train(mode)
        model.blocks[0].eval()
        train(model, optim.SGD(model.trainable_parameters(), 0.1))
        assert not model.blocks[0].training and model.blocks[1].training == mode
        return state(model)

    assert trained(True, 0.5) == trained(False, 0.5) != trained(False, 0.0)


def test_fit_and_attach_say_where_dropout_is_off():
    model, lines = gpt2(dropout=0.3).eval(), []
    with pytest.warns(UserWarning, match="attach: in eval mode dropout is off: .* model.train"):
        lora.attach(model, ml.LoRAConfig(dropout=0.5))
    how = {"progress": lines.append}
    ml.fit(model, BATCHES, optim.SGD(model.trainable_parameters(), 0.1), 1, **how)
    assert lines[0].startswith("dropout is on in the steps, though ")
    ml.fit(model.train(), BATCHES, optim.SGD(model.trainable_parameters(), 0.1), 1, **how)
    assert [line[:8] for line in lines[1:]] == ["step 1/1"] * 2


class NoBias(nn.Module):
    def __init__(self):
        self.q, self.tok = nn.Linear(4, 4, bias=False, rng=0), nn.Embedding(4, 4, rng=0)


CANNOT = [
    (lambda: gpt2(), {"targets": "tok", "dropout": 0.5}, "dropout has no effect"),
    (NoBias, {"targets": "q", "bias": "lora"}, 'bias="lora" has no effect'),
    (NoBias, {"targets": "q", "bias": "all"}, 'bias="all" has no effect'),
    (lambda: gpt2(), {"rank_pattern": {"*": 2, "q": 4}}, "pattern 'q' has no effect"),
    (lambda: gpt2(), {"alpha_pattern": {"blocks.*": 2, "v": 4}}, "pattern 'v' has no effect"),
]


@pytest.mark.parametrize(("make", "settings", "words"), CANNOT)
def test_an_option_of_lora_that_cannot_act_says_so(make, settings, words):
    for method in (ml.LoRAConfig, methods.RsLoRA):
        with pytest.warns(UserWarning, match=words):
            lora.attach(make(), method(r=2, **settings))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        lora.attach(gpt2(), ml.LoRAConfig(rank_pattern={"q": 4, "*": 2}, bias="lora", dropout=0.1))


# Optimizers, schedules, clipping, loss scale.


def optimized(make, **settings) -> bytes:
    model = gpt2()
    optimizer = make(model.trainable_parameters(), **{"lr": 0.01} | settings)
    by_steps(model, optimizer)
    return state(model)


OPTIMIZER = {
    "lr": ({"lr": 0.01}, {"lr": 0.02}),
    "momentum": ({}, {"momentum": 0.5}),
    "betas": ({}, {"betas": (0.5, 0.9)}),
    "eps": ({}, {"eps": 0.1}),
    "weight_decay": ({}, {"weight_decay": 0.5}),
    "exclude": ({}, {"exclude": ()}, {"exclude": "tok.W"}, {"exclude": ("*.b",)}),
    "rates": ({"rates": {"*.W": 2}}, {"rates": {"*.b": 2}}),
}


@pytest.mark.parametrize("make", [optim.SGD, optim.Adam, optim.AdamW, methods.LoRAPlus])
def test_every_option_of_an_optimizer_acts(make):
    own = {**inspect.signature(make.__init__).parameters}
    if make is methods.LoRAPlus:
        own |= inspect.signature(optim.AdamW.__init__).parameters
    base = {"rates": {"*.W": 2}} if make is methods.LoRAPlus else {}
    for option in own.keys() - {"self", "parameters", "args", "settings"}:
        runs = OPTIMIZER[option]
        assert len({optimized(make, **base | how) for how in runs}) == len(runs), option


def test_decay_has_one_rule_for_parameters_with_and_without_names():
    class Own(nn.Module):
        def __init__(self):
            self.scale, self.layers = nn.Parameter(normal(0, 3)), [nn.Linear(3, 3, rng=0)]
            self.bias, self.one = nn.Parameter(normal(1, 3)), nn.Parameter(normal(2))

    for model in (gpt2(), Own(), nn.Linear(3, 2, rng=0), nn.LayerNorm(3)):
        for given in (model.parameters(), dict(model.named_parameters())):
            optimizer = optim.AdamW(given)
            decayed = [optimizer.parameters[name] for name in optimizer.decays]
            assert {*decayed} == {p for p in model.parameters() if len(p.shape) > 1}
    model = gpt2()
    lora.attach(model, methods.DoRA(r=2))
    decays = optim.AdamW(model.trainable_parameters()).decays
    assert decays and all(name.endswith((".A", ".B")) for name in decays)
    for given, names in ((gpt2().trainable_parameters(), "W, b, g"), (gpt2().parameters(), "0, 1")):
        with pytest.raises(ValueError, match=rf"exclude: .* matches '\*\.bias': choose .* {names}"):
            optim.AdamW(given, exclude=["*.bias"])
    with pytest.raises(ValueError, match=r"rates: '\*.B' has no effect, because '\*' before it"):
        methods.LoRAPlus(model.trainable_parameters(), rates={"*": 1, "*.B": 16})


SCHEDULE = {"peak": (1.0, 2.0), "steps": (10, 12), "warmup": (0, 3), "floor": (0.0, 0.5)}


@pytest.mark.parametrize("make", [optim.linear_schedule, optim.cosine_schedule])
def test_every_option_of_a_schedule_acts(make):
    for option in inspect.signature(make).parameters:
        made = [make(**{"peak": 1.0, "steps": 10, option: x}) for x in SCHEDULE[option]]
        assert [made[0](i) for i in range(10)] != [made[1](i) for i in range(10)], option
    for warmup in (10, 100):
        with pytest.raises(ValueError, match=f"a warm-up of {warmup} steps leaves none of the 10"):
            make(1.0, 10, warmup)
    with pytest.raises(ValueError, match="floor 2 is above the peak, 1"):
        optim.cosine_schedule(1.0, 10, floor=2.0)


def test_a_schedule_that_does_not_fit_the_run_is_refused_or_said():
    def go(schedule=None, steps=6, lr=0.1):
        model = gpt2()
        optimizer = optim.SGD(model.trainable_parameters(), lr)
        return ml.fit(model, BATCHES, optimizer, steps, schedule=schedule, progress=False).lrs

    for make in (optim.linear_schedule, optim.cosine_schedule):
        for steps in (1, 3, 5, 7, 100):
            with pytest.raises(ValueError, match=f"schedule is for {steps} steps, but .* has 6"):
                go(make(1e-3, steps))
        with pytest.raises(ValueError, match="schedule is for 200 steps"):
            go(make(1e-3, 200, warmup=100))
        assert len(go(make(1e-3, 6, warmup=5))) == 6
        with pytest.raises(ValueError, match="the learning rate is 0 in all steps"):
            go(make(0.0, 6))
    for nothing in ({"lr": 0.0}, {"schedule": lambda i: 0.0}):
        with pytest.raises(ValueError, match="the learning rate is 0 in all steps"):
            go(**nothing)
    with pytest.warns(UserWarning, match=r"fit: schedule\(2\) is 0: 4 of 6 steps change nothing"):
        go(lambda i: 1e-3 * (i < 2))


def test_every_option_of_clipping_and_of_the_loss_scale_acts():
    def clipped(most):
        p = nn.Parameter(normal(0, 3))
        p.grad = normal(1, 3)
        optim.clip_grad_norm([p], most)
        return p.grad.tobytes()

    assert clipped(0.1) != clipped(0.2)
    assert [*inspect.signature(optim.clip_grad_norm).parameters] == ["parameters", "max_norm"]

    def scaled(**settings):
        scale, model = ml.LossScale(**settings), gpt2()
        ml.fit(model, BATCHES, optim.SGD(model.trainable_parameters(), 0.1), 4, loss_scale=scale,
               progress=False)
        return scale.state_dict()["scale"]

    assert [*inspect.signature(ml.LossScale).parameters] == ["scale", "patience"]
    assert scaled(scale=2.0) != scaled(scale=4.0)
    assert scaled(scale=2.0, patience=2) != scaled(scale=2.0, patience=3)
    with pytest.raises(ValueError, match="LossScale: scale must be in"):
        ml.LossScale(2.0**-11)  # from which fit would stop at once


# fit, train_step, evaluate.


def half(model, batch):
    return ml.ops.cross_entropy(model(batch[0]), batch[1]) * 0.5


UNSEEN = [(ids(50, 2, 6), ids(51, 2, 6)), (ids(52, 3, 6), ids(53, 3, 6))]
FIT = {  # option -> settings of the first run, and of the second; {} is what all have
    "batches": ({}, {"batches": BATCHES[1:]}),
    "steps": ({}, {"steps": 5}),
    "schedule": ({}, {"schedule": lambda step: 0.1 / (step + 1)}),
    "max_grad_norm": ({}, {"max_grad_norm": 0.01}),
    "accumulation_steps": ({}, {"accumulation_steps": 2}),
    "loss": ({}, {"loss": half}),
    "held_out": ({}, {"held_out": UNSEEN}),
    "eval_every": ({"held_out": UNSEEN}, {"held_out": UNSEEN, "eval_every": 2}),
    "progress": ({}, {"progress": False}),
    "log_every": ({}, {"log_every": 2}),
    "checkpoint": ({}, {"checkpoint": "run.npz"}),
    "save_every": ({"checkpoint": "run.npz", "dies": 4},
                   {"checkpoint": "run.npz", "dies": 4, "save_every": 1}),
    "resume": ({"checkpoint": "run.npz", "again": 1},
               {"checkpoint": "run.npz", "again": 1, "resume": False}),
    "about": ({"checkpoint": "run.npz"}, {"checkpoint": "run.npz", "about": {"text": "a"}}),
    "loss_scale": ({}, {"loss_scale": ml.LossScale(3e38)}),
    "weight": ({"accumulation_steps": 2},
               {"accumulation_steps": 2, "weight": lambda batch: int(batch[0][0, 0]) + 1}),
    "group": ({"checkpoint": "run.npz"}, {"checkpoint": "run.npz", "group": ml.Alone()}),
}


def fitted(path, dies=99, again=0, **how):
    """Return all that a run leaves: weights, history, lines, and the state in its file."""
    for file in path.glob("*.npz"):
        file.unlink()
    lines = []
    for last in range(again + 1):
        model = gpt2(dtype="float32")
        optimizer = optim.SGD(model.trainable_parameters(), 0.1)

        def progress(line):
            lines.append(line.partition("  lr")[0])
            if line.startswith(f"step {dies}"):
                raise KeyError

        settings = {"batches": BATCHES, "steps": 6, "progress": progress} | how
        if (given := settings.pop("checkpoint", None)) is not None:
            settings["checkpoint"] = path / given
        history = None
        with contextlib.suppress(KeyError):
            history = ml.fit(model, optimizer=optimizer, **settings)
        if last < again:
            lines.clear()
    files = [ml.files.checkpoint.read(file, "run") for file in path.glob("*.npz")]
    return repr((state(model), history, lines, [meta for _, meta in files]))


def test_every_option_of_fit_acts(tmp_path):
    for option in inspect.signature(ml.fit).parameters.keys() - {"model", "optimizer"}:
        one, two = FIT[option]
        assert fitted(tmp_path, **one) != fitted(tmp_path, **two), option


def test_settings_of_a_checkpoint_are_refused_without_one():
    for name, value in (("save_every", 5), ("about", {"text": "a"})):
        model = gpt2()
        with pytest.raises(ValueError, match=f"fit: {name} is given, but checkpoint is missing"):
            ml.fit(model, BATCHES, optim.SGD(model.parameters(), 0.1), 2, **{name: value})


STEP = {name: FIT[name] for name in ("max_grad_norm", "loss", "weight")} | {
    "loss_scale": ({}, {"loss_scale": ml.LossScale(3e38)}), "group": ({}, {"group": ml.Alone(2)})}


def test_every_option_of_train_step_and_evaluate_acts():
    def stepped(accumulation_steps=2, **how):
        model = gpt2(dtype="float32", dropout=0.5)  # each shard draws numbers of its own
        ml.train_step(model, BATCHES[:2], optim.SGD(model.parameters(), 0.1), **how)
        return state(model)

    for option in inspect.signature(ml.train_step).parameters.keys() - {
        "model", "batches", "optimizer"
    }:
        one, two = STEP[option]
        assert stepped(**one) != stepped(**two), option
    assert [*inspect.signature(ml.evaluate).parameters][2:] == ["loss", "weight"]
    usual = ml.evaluate(gpt2(), BATCHES)
    assert ml.evaluate(gpt2(), BATCHES, half) == pytest.approx(usual / 2)
    assert ml.evaluate(gpt2(), BATCHES, weight=FIT["weight"][1]["weight"]) != usual


# Generation and data.

GENERATE = {
    "n_tokens": ({"n_tokens": 5}, {"n_tokens": 6}),
    "temperature": ({}, {"temperature": 0.1}),
    "top_k": ({}, {"top_k": 2}),
    "top_p": ({}, {"top_p": 0.2}),
    "rng": ({}, {"rng": 1}),
    "cache": ({}, {"cache": False}),
    "stop": ({}, {"stop": 6}),
    "repetition_penalty": ({}, {"repetition_penalty": 9.0}),
}


def test_every_option_of_generate_acts():
    def said(**how):
        model, caches = gpt2(), []
        new, model.new_cache = model.new_cache, lambda *x: (caches.append(1), new(*x))[1]
        return repr((ml.generate(model, [1, 2], **{"n_tokens": 8, "rng": 0} | how), len(caches)))

    for option in inspect.signature(ml.generate).parameters.keys() - {"model", "ids", "begins"}:
        one, two = GENERATE[option]
        assert said(**one) != said(**two), option
    for name, value in (("top_k", 2), ("top_p", 0.5)):
        with pytest.raises(ValueError, match=f"{name} has no effect at temperature 0"):
            said(temperature=0, **{name: value})


def test_every_option_of_data_acts():
    stream = np.arange(200) % 11
    for make in (data.Windows, data.sequential):
        for option in inspect.signature(make).parameters.keys() - {"ids"}:
            a, b = (make(stream, **{"batch": 2, "tokens": 4, option: x})[0] for x in (5, 6))
            assert repr(a) != repr(b), option
    assert data.split("a\n" * 40, 0.1) != data.split("a\n" * 40, 0.5)
    checks = data.sequential(stream, 2, 4)
    losses = {data.unigram_loss(stream, checks, 11), data.unigram_loss(stream, checks, 12),
              data.unigram_loss(stream[:7], checks, 11), data.unigram_loss(stream, checks[:1], 11)}
    assert len(losses) == 4


# Commands.

FINETUNE = {
    "--out": "--out b.npz", "--steps": "--steps 2", "--restart": "--restart",
    "--base": "--base m.npz",
    "--base-dtype": "--base-dtype float16", "--r": "--r 3", "--alpha": "--alpha 3",
    "--targets": "--targets k", "--dropout": "--dropout 0.5", "--batch": "--batch 3",
    "--window": "--window 9", "--recompute": "--recompute", "--lr": "--lr 0.001",
    "--dtype": "--dtype float64", "--checks": "--checks 2", "--seed": "--seed 1",
    "--method": "--method dora", "--bias": "--bias lora",
    "--layers": "--method adapter-d --layers 1",
    "--lp": "--method prelayer --lp 3", "--li": "",  # of a task with prompts
    "--adapter": "--adapter given.npz", "--eval": "--eval held.txt", "--chart": "--chart l.svg",
    "--export": "--export peft there",
    "--threads": "", "--backend": "", "--plain": "", "--json": "",  # test_cli.py has these
    "--task": "", "--data": "",  # and test_finetune_tasks.py these
    "--shards": "", "--reduce": "",  # and test_ranks.py these
}


def test_every_option_of_finetune_acts(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "words.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 60)
    base = ml.load_base()
    shake(base.parameters(), 1, 0.01)
    ml.save_model(base, "m.npz")
    (tmp_path / "held.txt").write_text("pack my box with five dozen liquor jugs\n" * 60)
    adapted = ml.load_base()
    lora.attach(adapted, ml.LoRAConfig(r=2), name="given", rng=0)
    lora.save(adapted, "given.npz")
    seen = []

    def fit(model, *args, resume, **settings):
        seen.append((model.recompute, resume))
        return ml.fit(model, *args, resume=resume, **settings)

    monkeypatch.setattr(cli.finetune, "fit", fit)

    def tuned(options):
        line = f"finetune words.txt --json --steps 1 --batch 2 --window 8 --checks 1 {options}"
        assert cli.main(shlex.split(line)) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out), seen.pop()

    usual, own = tuned(""), tuned("--base m.npz")
    assert {*command_line().commands["finetune"].options} == {*FINETUNE}
    for option, given in FINETUNE.items():
        if option == "--base-dtype":  # the built-in base is stored in half precision anyway
            assert tuned(f"--base m.npz {given}") != own
        elif given:
            assert tuned(given) != usual, option


def test_every_option_of_pretrain_acts(tmp_path):
    text = "the quick brown fox jumps over the lazy dog\n" * 60
    config = ml.GPT2Config(vocab_size=270, n_positions=8, d_model=8, n_layers=1, n_heads=2)
    lines = []

    def go(out="a.npz", **how):
        lines.clear()
        how = {"steps": 2, "config": config, "batch": 2, "text": text, "say": lines.append} | how
        model, _ = pretrain(tmp_path / out, **how)
        return state(model), bool(lines), sorted(path.name for path in tmp_path.iterdir())

    usual = go()
    others = {
        "steps": 3, "seed": 1, "config": dataclasses.replace(config, dropout=0.5), "batch": 3,
        "text": "a\n" * 9 + text, "say": lambda line: None, "out": "b.npz",
    }
    tested = {*others, "name", "resume"}  # the last in test_pretrain.py
    assert tested == {*inspect.signature(pretrain).parameters}
    for option, value in others.items():
        assert go(**{option: value}) != usual, option
    own = dataclasses.replace(config, n_positions=64)
    assert go(name="mini-decoder", text=None, config=own) != usual
    assert any("examples are drawn from the seed" in line for line in lines)
