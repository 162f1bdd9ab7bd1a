"""Mistakes that people make in Python, and the errors: `python tests/messages.py` prints them.

PYTHON maps a line to a part of its error. Mistakes on the command line are in test_cli.py.
"""

from __future__ import annotations

import contextlib
import sys
import tempfile
import warnings
from pathlib import Path
from typing import Any

import numpy as np

import minilora as ml
from minilora import data, lora, nn, ops, optim

PYTHON = {
    # inputs of layers, models and ops
    "model('To be')": "tokenizer.encode",
    "model(np.zeros((1, 4)))": "integers (batch, tokens)",
    "model(ids[0])": "(batch, tokens)",
    "model(np.full((1, 4), 99))": "99",
    "model(np.zeros((1, 40), int))": "cut each text, as ids[:, :12]",
    "model(np.zeros((1, 12), int), cache=full(model))": "ids[:, :12], and start a new cache",
    "ops.linear(ml.Tensor(np.ones((2, 3))), ml.Tensor(np.ones((4, 5))))": "linear: x is (2, 3)",
    "ops.softmax(ml.Tensor(np.ones(3)), axis=4)": "softmax",
    "ops.cross_entropy(model(ids), ids + 90)": "target",
    "ops.replaced(sofmax=None).__enter__()": "unknown op 'sofmax'",
    "wrong_shape(ml.Tensor(np.ones(3), requires_grad=True)).sum().backward()": "gradient",
    "model(ids).backward()": "scalar",
    "two = model(ids).sum(); two.backward(); two.backward()": "consumed",
    "frozen(model)(ids).sum().backward()": "requires a gradient",
    "ml.gradcheck(lambda x: x.data, np.ones(2))": "Tensor",
    # configs and adapters
    "ml.GPT2Config(vocab_size=300.0)": "vocab_size must be an integer",
    "ml.GPT2Config(d_model=10, n_heads=3)": "not a multiple",
    "ml.GPT2Config(n_embd=64)": "d_model",
    "ml.GPT2Config(n_layer=2)": "n_layers",
    "ml.GPT2Config(dropout=float('nan'))": "dropout",
    "lora.LoRAConfig(lora_alpha=16)": "alpha",
    "lora.LoRAConfig(target_modules=['q'])": "targets",
    "lora.LoRAConfig(use_dora=True)": 'methods.apply(model, "dora", ...)',
    "lora.LoRAConfig(init='pissa')": 'methods.apply(model, "pissa", ...)',
    "lora.LoRAConfig(lr=1e-4)": "belongs to the optimizer",
    "lora.LoRAConfig(r=0)": "r must be an integer",
    "lora.LoRAConfig(r='8')": "r must be an integer",
    "lora.LoRAConfig(alpha=0)": "alpha must not be 0",
    "lora.LoRAConfig(alpha=float('inf'))": "alpha",
    "lora.LoRAConfig(dropout=1.0)": "dropout must be in [0, 1)",
    "lora.LoRAConfig(init='normal')": "gaussian, kaiming",
    "lora.attach(model, 'q')": "LoRAConfig",
    "lora.attach(model, lora.LoRAConfig(targets='query'))": "no layer matches 'query'",
    "lora.attach(model, lora.LoRAConfig(trainable='head'))": "no parameter matches 'head'",
    "lora.attach(model, lora.LoRAConfig(rank_pattern={'up': 2}))": "no adapted layer matches 'up'",
    "lora.attach(model, lora.LoRAConfig(), name='my.adapter')": "cannot be an adapter's name",
    "lora.attach(model, lora.LoRAConfig(), base_dtype='int16')": "base_dtype",
    "twice(model)": "cannot be an adapter's name",
    # adapters that do not exist, or are not active
    "lora.merge(two_adapters(model))": "is not active",
    "lora.activate(adapted(model), 'poet')": "no adapter is called 'poet'",
    "lora.detach(model)": "no adapter",
    "lora.save(model, 'a.npz')": "no adapter",
    "lora.save(two_adapters(model), 'a.npz')": "which one? Attached are",
    "lora.save_peft(model, 'a')": "no adapter",
    "lora.save_peft(two_adapters(model), 'a')": "which one? Attached are",
    "lora.load_peft(model, 'nowhere')": "is not a folder: give the one with adapter_config.json",
    "ml.save_model(adapted(model), 'm.npz')": "merge or detach",
    "ml.save_model(nn.Linear(3, 3, rng=0), 'm.npz')": "np.savez(path, **model.state_dict())",
    "inside_merged(model)": "merged in this block",
    # training
    "optim.AdamW(model)": "trainable_parameters()",
    "optim.AdamW(frozen(model).trainable_parameters())": "nothing to train",
    "optim.AdamW(model.trainable_parameters(), lr=float('nan'))": "lr must be finite",
    "optim.AdamW([np.ones(2)])": "AdamW",
    "optim.AdamW(model.trainable_parameters(), learning_rate=1e-3)": "called lr here",
    "ml.fit(model, batches, optimizer, num_steps=5)": "called steps here",
    "ml.fit(model, batches, optimizer, epochs=2)": "steps=epochs * len(batches)",
    "optim.AdamW(model.trainable_parameters(), weigth_decay=1)": "did you mean weight_decay?",
    "optim.linear_schedule(float('nan'), 10)": "peak",
    "optimizer.step()": "backward()",
    "adapted(model); optimizer.step()": "frozen",
    "ml.fit(model, 'To be', optimizer, 5)": "data.Windows",
    "ml.fit(model, [], optimizer, 5)": "no batches",
    "ml.fit(model, batches, model, 5)": "AdamW(model.trainable_parameters()",
    "ml.fit(model, batches, optimizer, 0)": "steps must be an integer >= 1",
    "ml.fit(model, batches, optimizer, 5, schedule=1e-3)": "schedule must be a function",
    "ml.fit(model, batches, optimizer, 5, checkpoint='nowhere/run.npz')": "nowhere is not a folder",
    "ml.fit(adapted(model), batches, optimizer, 5)": "after attach",
    "optimizer.lr = 1e38; ml.fit(model, batches, optimizer, 5, progress=False)": "learning rate",
    "ml.evaluate(model, (ids, ids))": "[(inputs, targets)]",
    "optimizer.load_state_dict({})": "missing",
    "model.load_state_dict('model.npz')": "arrays by name",
    # writing
    "ml.generate(model, [], 5)": "generate",
    "ml.generate(model, ids[0], -1)": "n_tokens",
    "ml.generate(model, ids[0], 5, temperature=float('nan'))": "temperature",
    "ml.generate(model, ids[0], 5, top_p=0)": "top_p",
    "spoilt(model); ml.generate(model, ids[0], 5)": "blocks.1.mlp.up.W",
    # texts and files
    "data.load_text('bible')": "plays",
    "data.split('')": "0 characters",
    "data.Windows(ids[0], 4, 100)": "too few for a window of 100 tokens",
    "data.BPE([(256, 1)])": "256",
    "ml.load_base('bert')": "shakespeare",
    "ml.load_model('notes.npz')": "not a minilora file",
    "ml.load_model('adapter.npz')": "holds an adapter, not a model",
    "ml.load_model('.')": "config.json is missing",
    "ml.GPT2.from_pretrained('./gpt2')": "there is no folder ./gpt2",
    "ml.GPT2.from_pretrained('model.npz')": "ml.load_model",
    "adapted(model).save_pretrained('out')": "merge or detach",
    "model.save_pretrained('.')": "is not empty",
    "lora.load(model, 'model.npz')": "holds a model, not an adapter",
    "ml.use('torch')": "numpy, cupy",
}


def given() -> dict[str, Any]:
    """Return new objects for the names in PYTHON."""
    config = ml.GPT2Config(vocab_size=20, n_positions=12, d_model=8, n_layers=2, n_heads=2)
    model = ml.GPT2(config, rng=0)
    ids = np.arange(12).reshape(2, 6)

    def adapted(model, name="default"):
        lora.attach(model, lora.LoRAConfig(r=2, alpha=4), name, rng=0)
        return model

    def two_adapters(model):
        return adapted(adapted(model, "poet"), "judge")

    def twice(model):
        return adapted(adapted(model))

    def inside_merged(model):
        with lora.merged(adapted(model)):
            ml.save_model(model, "m.npz")

    def spoilt(model):
        model.blocks[1].mlp.up.W.data[0, 0] = np.nan

    def full(model):
        cache = model.new_cache(1)
        model(ids[:1], cache=cache)
        return cache

    @ml.op
    def wrong_shape(x):
        return x * 2, (lambda g: g[:2],)

    return {
        "ml": ml, "np": np, "lora": lora, "ops": ops, "nn": nn, "optim": optim, "data": data,
        "model": model, "ids": ids, "adapted": adapted, "two_adapters": two_adapters,
        "full": full, "twice": twice, "spoilt": spoilt, "inside_merged": inside_merged,
        "wrong_shape": wrong_shape, "frozen": lambda model: model.requires_grad_(False),
        "batches": data.Windows(np.arange(200) % 20, 2, 6),
        "optimizer": optim.AdamW(model.trainable_parameters(), lr=1e-3),
    }


@contextlib.contextmanager
def somewhere():
    """Enter a new folder with the files that the lines name."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        Path("notes.npz").write_text("Notes, not arrays.\n", "utf-8")
        names = given()
        ml.save_model(names["model"], "model.npz")
        lora.save(names["adapted"](names["model"]), "adapter.npz")
        yield


def error_of(line: str) -> str:
    """Return the error that a line of Python raises, as text."""
    try:
        with warnings.catch_warnings(action="ignore"):
            exec(line, given())
    except Exception as error:
        return f"{type(error).__name__}: {error.args[0] if error.args else error}"
    return ""


if __name__ == "__main__":
    with somewhere():
        for line in PYTHON:
            print(f"{line}\n    {error_of(line)}\n")
    print(f"{len(PYTHON)} mistakes", file=sys.stderr)
