"""Every reader of files against damaged ones: `python tests/fuzz.py` prints a table.

A damaged file is a valid one after one damage that knows the format: bytes cut, flipped or moved;
members dropped, swapped, renamed, compressed or given another shape or dtype; wrong headers; any
part of the JSON replaced. A reader must either return the right object, or raise a ValueError that
names the file and change nothing. Anything else is a fault.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import random
import shutil
import struct
import sys
import tempfile
import time
import warnings
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from strategies import adapted, everything, gpt2, ids, made, same_bytes, shake, shard

import minilora as ml
from minilora import data, lora
from minilora.adapters.registry import trained_by
from minilora.files import checkpoint

META = f"{checkpoint.META}.npy"
ODD = [
    None, True, False, 0, -1, 1, 3, 10**7, 10**8, 2**63, -(2**31), 0.0, 0.5, -2.5, 1e308, "", "x",
    "q", "default", "gpt2", "model", "tok.W", [], [0], ["q"], [[0, 1]], {}, {"a": 1},
    [[[[]]]], "\u0000", "b" * 3000,
]


# The damages.


def take_apart(valid: bytes) -> list[tuple[str, bytes]]:
    """Return (name, bytes) of each member."""
    with zipfile.ZipFile(io.BytesIO(valid)) as archive:
        return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]


def put_together(members: list[tuple[str, bytes]], how: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w", how) as archive:
        for name, parts in members:  # a repeated name gives a warning
            archive.writestr(zipfile.ZipInfo(name), parts, compress_type=how)
    return out.getvalue()


def npy(array: np.ndarray) -> bytes:
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"):
        np.save(out, array, allow_pickle=True)
    return out.getvalue()


def cut(valid: bytes, rng: random.Random) -> bytes:
    return valid[: rng.randrange(len(valid))]


def flipped(valid: bytes, rng: random.Random) -> bytes:
    out = bytearray(valid)
    for _ in range(rng.choice([1, 1, 1, 2, 8, 64])):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def moved(valid: bytes, rng: random.Random) -> bytes:
    """Drop, double or zero a piece, or replace it with noise."""
    a, b = sorted(rng.randrange(len(valid) + 1) for _ in range(2))
    b = min(b, a + rng.choice([1, 4, 30, 400]))
    piece = [b"", valid[a:b] * 2, bytes(b - a), rng.randbytes(b - a)]
    return valid[:a] + rng.choice(piece) + valid[b:]


def directory(valid: bytes, rng: random.Random) -> bytes:
    """Change a number in the list of members or in the end record."""
    out, at = bytearray(valid), valid.rfind(b"PK\5\6")
    starts = [at, *(i for i in range(len(valid) - 4) if valid[i : i + 4] in (b"PK\1\2", b"PK\3\4"))]
    place = rng.choice(starts) + rng.randrange(4, 22)
    width = rng.choice([1, 2, 4])
    number = rng.choice([0, 1, 8, 255, 65535, 2**32 - 1, rng.randrange(2**32)])
    out[place : place + width] = struct.pack("<L", number)[:width]
    return bytes(out)


def members(valid: bytes, rng: random.Random) -> bytes:
    """Drop, double, rename, swap, compress or add a member."""
    parts = take_apart(valid)
    i, j = (rng.randrange(len(parts)) for _ in range(2))
    kind = rng.randrange(6)
    if kind == 0:
        del parts[i]
    elif kind == 1:
        parts.insert(j, parts[i])
    elif kind == 2:
        name = parts[i][0]
        to = [
            f"x{name}",
            name[:-4],
            f"{name}.npy",
            "../x.npy",
            "",
            f"{name[:-4]}.W.npy",
            parts[j][0],
        ]
        parts[i] = rng.choice(to), parts[i][1]
    elif kind == 3:
        parts[i], parts[j] = (parts[i][0], parts[j][1]), (parts[j][0], parts[i][1])
    elif kind == 4:
        return put_together(parts, zipfile.ZIP_DEFLATED)
    else:
        parts.insert(i, (rng.choice(["blocks.9.attn.q.A.npy", "x", "x.npy"]), parts[j][1]))
    return put_together(parts)


def numbers(valid: bytes, rng: random.Random) -> bytes:
    """Give a member's array another shape or dtype, or values that are not finite."""
    parts = take_apart(valid)
    i = rng.choice([i for i, (name, _) in enumerate(parts) if name != META] or [0])
    array = np.load(io.BytesIO(parts[i][1]))
    wide = array.astype("float64")
    size = max(1, array.size)
    nasty = np.array([rng.choice([np.nan, np.inf, -np.inf, 1e300])] * size)
    other = rng.choice([
        wide.T, wide.reshape(-1), wide[None], wide.reshape(-1)[: size // 2], np.zeros((0, 3)),
        wide.astype("int64"), wide.astype("complex64"), wide.astype("bool"), wide.astype("U4"),
        wide.astype("float16"), wide.astype(">f4"), wide, np.array(["x", None], object),
        nasty.reshape(array.shape) if array.size else wide, np.asfortranarray(wide),
        np.zeros((*array.shape, 1)), np.float64(3.0), wide.astype("M8[s]"),
        np.zeros(2, [("a", "f4"), ("b", "i4")]),
    ])
    parts[i] = parts[i][0], npy(other)
    return put_together(parts)


def headers(valid: bytes, rng: random.Random) -> bytes:
    """Write a header that does not fit its array."""
    parts = take_apart(valid)
    i = rng.randrange(len(parts))
    name, old = parts[i]
    body = old[10 + int.from_bytes(old[8:10], "little") :]
    shapes = ["()", "(1,)", "(10**9,)", "(1000000000000,)", "(-1,)", "(2, 3", "(0,)", "(2, 8)",
              "(4294967296, 4294967296)", "(8, 2)", "[2]", "(2.0,)", "(True,)"]
    kinds = ["'<f4'", "'<f8'", "'|O'", "'<f2'", "'<i8'", "'|u1'", "[('a', '<f4')]", "'<c8'"]
    order = rng.choice(["False", "True", "0"])
    text = f"{{'descr': {rng.choice(kinds)}, 'fortran_order': {order}, 'shape': "
    text += f"{rng.choice(shapes)}, }}"
    if rng.random() < 0.1:
        text = rng.choice(["(" * 5000, "-" * 5000 + "1", "__import__('os')", "", "{" * 300])
    head = text.encode().ljust(118) + b"\n"
    version = rng.choice([b"\1\0", b"\1\0", b"\1\0", b"\2\0", b"\3\0", b"\xff\xff"])
    parts[i] = name, b"\x93NUMPY" + version + struct.pack("<H", len(head)) + head + body
    return put_together(parts)


def facts(valid: bytes, rng: random.Random) -> bytes:
    """Damage the JSON."""
    parts = dict(take_apart(valid))
    meta = json.loads(np.load(io.BytesIO(parts[META])).tobytes())
    parts[META] = npy(np.frombuffer(another(meta, rng), np.uint8))
    return put_together([*parts.items()])


def settings(valid: bytes, rng: random.Random) -> bytes:
    """Damage a file that is JSON and nothing else."""
    return another(json.loads(valid), rng)


def entries(valid: bytes, rng: random.Random) -> bytes:
    """Damage the JSON at the beginning of a safetensors file."""
    end = 8 + int.from_bytes(valid[:8], "little")
    header = another(json.loads(valid[8:end]), rng)
    return len(header).to_bytes(8, "little") + header + valid[end:]


def length(valid: bytes, rng: random.Random) -> bytes:
    """Give the header of a safetensors file another length, up to the largest number."""
    number = rng.choice([0, 1, 7, len(valid), len(valid) - 8, 2**63, 2**64 - 1,
                         rng.randrange(1 << rng.randrange(1, 65))])
    return number.to_bytes(8, "little") + valid[8:]


def header(valid: bytes, rng: random.Random) -> bytes:
    """Change a number before the tensors of a GGUF file, which all are little endian."""
    out, end = bytearray(valid), valid.rfind(b"output_norm.weight") + 80
    place, width = rng.randrange(4, end), rng.choice([1, 4, 4, 8])
    number = rng.choice([0, 1, 2, 8, 9, 12, 32, 255, 2**31, 2**32 - 1, 2**40, 2**63, 2**64 - 1,
                         rng.randrange(2**64)])
    out[place : place + width] = struct.pack("<Q", number)[:width]
    return bytes(out)


def another(meta: dict, rng: random.Random) -> bytes:
    """Replace, drop or double a part of the JSON, or make it invalid."""
    text = None
    if rng.random() < 0.15:
        good = json.dumps(meta)
        text = rng.choice([
            good[: rng.randrange(len(good))], "[" * 2000, "[]", "", "null", '"x"', "NaN",
            good[:-1] + ', "kind": "x"}', good.replace("1", "NaN"), good.replace("2", "1e999"),
            good.replace("1", "9" * 5000), "\ud800", good + " ", good[:-1] + ', "more": 1}',
        ])
    else:
        places = [(meta, key) for key in meta]
        for holder, key in places:
            below = holder[key]
            if isinstance(below, dict):
                places += [(below, key) for key in below]
            elif isinstance(below, list):
                places += [(below, i) for i in range(len(below))]
        holder, key = rng.choice(places)
        if rng.random() < 0.2:
            del holder[key]
        elif rng.random() < 0.2 and isinstance(holder, dict):
            holder[rng.choice(["", "x", "q", "blocks.0.attn.v", f"{key}x"])] = holder.pop(key)
        else:
            holder[key] = rng.choice(ODD)
    raw = (json.dumps(meta) if text is None else text).encode("utf-8", "surrogatepass")
    if rng.random() < 0.02:
        raw = b"\xff" + raw
    return raw


DAMAGES = [cut, flipped, moved, directory, members, numbers, headers, facts, facts]
BYTES = (cut, flipped, moved, directory)  # a file read after these must give the same object


# The readers.


class Reader:
    """make() writes a valid file; read() reads it and returns (arrays, facts) to compare.

    exact: the damages after which the same object is read, or none. named: how errors begin.
    """

    damages, exact = DAMAGES, BYTES

    def __init__(self, folder: Path) -> None:
        self.path = self.named = folder / f"{type(self).__name__.lower()}.npz"
        self.make()
        self.valid = self.path.read_bytes()
        self.right = self.read()
        self.fresh()

    def fresh(self) -> None:
        """Create a new object to read into."""

    def state(self) -> object:
        """Return everything that a refusal must not change."""


class Model(Reader):
    """ml.load_model"""

    def make(self):
        model = gpt2(0, "float32", vocab_size=260)
        model.tokenizer = data.BPE([(97, 98), (256, 99)])
        ml.save_model(model, self.path)

    def read(self):
        model = ml.load_model(self.path)
        assert np.isfinite(ml.asnumpy(model(ids()).data)).all()
        if model.tokenizer is not None:
            model.tokenizer.decode(model.tokenizer.encode("abc"))
        again = self.path.with_suffix(".again.npz")
        ml.save_model(model, again)  # the model can be written and read again
        ml.load_model(again)
        merges = model.tokenizer and model.tokenizer.merges
        return model.state_dict(), {"merges": merges, "config": model.config}


class Adapter(Reader):
    """lora.load"""

    def make(self):
        model, _ = adapted(0, "float32", targets=("q", "tok"), trainable="ln_f", alpha=5)
        lora.save(model, self.path)
        self.fresh()

    def fresh(self):
        self.model = gpt2(0, "float32")
        self.optimizer = ml.SGD(self.model.trainable_parameters(), lr=0.1)

    def state(self):
        return everything(self.model, self.optimizer)

    def read(self):
        with warnings.catch_warnings(action="ignore"):  # trained on another base
            lora.load(self.model, self.path)
        (name,) = self.model.adapters.active
        assert np.isfinite(ml.asnumpy(self.model(ids()).data)).all()
        again = self.path.with_suffix(".again.npz")
        arrays, meta = checkpoint.read(lora.save(self.model, again))
        config = self.model.adapters.configs[name]
        return arrays, {"name": name, "scales": meta["scales"], "config": config}


class Run(Reader):
    """ml.fit, resuming from a checkpoint"""

    def make(self):
        self.fresh()
        ml.fit(self.model, self.batches, self.optimizer, 3, checkpoint=self.path, progress=False,
               held_out=self.batches)
        self.fresh()

    def fresh(self):
        self.model, _ = adapted(0, "float32", dropout=0.5, alpha=5)
        self.batches = [(ids(0), ids(1)), (ids(2), ids(3))]
        self.optimizer = ml.AdamW(self.model.trainable_parameters(), lr=0.01)

    def state(self):
        return everything(self.model, self.optimizer)

    def read(self):
        history = ml.fit(self.model, self.batches, self.optimizer, 3, checkpoint=self.path,
                         progress=False, held_out=self.batches)
        arrays = self.model.state_dict() | self.optimizer.state_dict()
        return arrays, {"history": history}


class State(Reader):
    """Module.load_state_dict with arrays from a file"""

    which = "model"

    def make(self):
        self.fresh()
        shake(self.model.parameters(), 1)
        shake([ml.Tensor(a) for a in self.optimizer.arrays().values()], 2)
        checkpoint.write(self.path, getattr(self, self.which).state_dict(), {})
        self.fresh()

    def fresh(self):
        self.model = gpt2(0, "float32")
        self.optimizer = ml.AdamW(self.model.trainable_parameters(), lr=0.01)

    def state(self):
        return everything(self.model, self.optimizer)

    def read(self):
        arrays, _ = checkpoint.read(self.path)
        into = getattr(self, self.which)
        try:
            into.load_state_dict(arrays)
        except (ValueError, KeyError) as error:  # a dict has no file name
            raise ValueError(f"{self.path}: {error.args[0]}") from None
        return into.state_dict(), {}


class Moments(State):
    """Optimizer.load_state_dict with arrays from a file"""

    which = "optimizer"


class Weights(Reader):
    """Bert.from_pretrained, with damaged tensors"""

    file, files = "model.safetensors", 1
    damages, exact = [cut, flipped, moved, entries, entries, length], (cut,)

    def make(self):
        self.named = self.path.with_suffix(".folder")
        model = made("bert", 0, "float32", head="pooler")
        self.path = model.save_pretrained(self.named) / self.file
        if self.files > 1:
            shard(self.named, self.files)

    def read(self):
        with warnings.catch_warnings(action="ignore"):  # an unknown setting
            model = ml.Bert.from_pretrained(self.named)
            assert model(ids()).shape == (len(ids()), 8)  # other numbers may well overflow
        return model.state_dict(), {"config": model.config}


class Settings(Weights):
    """Bert.from_pretrained, with a damaged config.json"""

    file, damages = "config.json", [cut, settings, settings, settings]


class Index(Weights):
    """Bert.from_pretrained, with a damaged index of its files"""

    file, files = "model.safetensors.index.json", 3
    damages, exact = [cut, flipped, moved, settings, settings], (cut, flipped, moved, settings)


class Tensors(Reader):
    """lora.load_peft, with damaged tensors"""

    file = "adapter_model.safetensors"
    damages, exact = [cut, flipped, moved, entries, entries, length], (cut,)

    def make(self):
        self.named = self.path.with_suffix(".folder")
        model, _ = adapted(0, "float32", targets=("q", "v", "pos"), trainable="ln_f", bias="lora")
        self.path = lora.save_peft(model, self.named) / self.file
        self.fresh()

    def fresh(self):
        self.model = gpt2(0, "float32")
        self.optimizer = ml.SGD(self.model.trainable_parameters(), lr=0.1)

    def state(self):
        return everything(self.model, self.optimizer)

    def read(self):
        with warnings.catch_warnings(action="ignore"):  # a pattern without an effect
            lora.load_peft(self.model, self.named)
            assert self.model(ids()).shape == (2, 7, 11)
            again = lora.save_peft(self.model, self.named.with_suffix(".again"))
            lora.load_peft(gpt2(0, "float32"), again)  # it can be written and read again
        shutil.rmtree(again)
        arrays = {at: p.data for at, p in trained_by(self.model, "default").items()}
        return arrays, {"config": self.model.adapters.configs["default"]}


class Facts(Tensors):
    """lora.load_peft, with a damaged adapter_config.json"""

    file, damages = "adapter_config.json", [cut, settings, settings, settings]


class Gguf(Reader):
    """Llama.from_gguf"""

    damages, exact = [cut, flipped, moved, header, header, header], (cut,)

    def make(self):
        from gguf_files import small, write

        self.path = self.named = self.path.with_suffix(".gguf")
        write(self.path, small(d_model=32, n_heads=2, n_kv_heads=1), kind="Q4_1")

    def read(self):
        with warnings.catch_warnings(action="ignore"):  # an unknown tokenizer
            model = ml.Llama.from_gguf(self.path)
            assert model(ids(tokens=3)).shape[:2] == (2, 3)
        own = model.tokenizer
        words = own and (own.tokens, own.merges, own.added, own.roles, own.pattern, own.template)
        return model.state_dict(), {"config": model.config, "tokenizer": words}


READERS = [Model, Adapter, Run, State, Moments, Weights, Settings, Index, Tensors, Facts]
if importlib.util.find_spec("gguf"):
    READERS.append(Gguf)


def judge(reader: Reader, seed: int) -> tuple[str, str]:
    """Read one damaged file. Return ("right", "other", "refused" or "FAULT", the reason).

    other: a consistent file with other content, such as another alpha.
    """
    rng = random.Random(seed)
    damage = rng.choice(reader.damages)
    reader.path.write_bytes(damage(reader.valid, rng))
    before, began = reader.state(), time.process_time()
    try:
        got = reader.read()
    except ValueError as error:
        message = str(error)
        if not message.startswith(str(reader.named)):
            return "FAULT", f"{damage.__name__}: without the file's name: {message}"
        if reader.state() != before:
            return "FAULT", f"{damage.__name__}: refused, but something changed: {message}"
        if time.process_time() - began > 2:
            return "FAULT", f"{damage.__name__}: slow"
        return "refused", message
    except Exception as error:
        return "FAULT", f"{damage.__name__}: {type(error).__name__}: {error}"
    reader.fresh()
    same = got[0].keys() == reader.right[0].keys() and got[1] == reader.right[1]
    same = same and all(same_bytes(got[0][name], a) for name, a in reader.right[0].items())
    if not same and damage in reader.exact:
        return "FAULT", f"{damage.__name__}: another object was read"
    return "right" if same else "other", damage.__name__


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--inputs", type=int, default=10_000, help="files per reader (10000)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first file (0)")
    names = [kind.__name__ for kind in READERS]
    parser.add_argument("readers", nargs="*", help=f"any of {', '.join(names)} (all)")
    args = parser.parse_args()
    if unknown := set(args.readers) - set(names):
        parser.error(f"unknown reader {min(unknown)}: choose from {', '.join(names)}")
    print(f"{'reader':<10}{'inputs':>8}{'right':>8}{'other':>8}{'refused':>9}{'else':>6}  seconds")
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        for kind in READERS:
            if args.readers and kind.__name__ not in args.readers:
                continue
            reader, counts, began = kind(Path(folder)), Counter(), time.perf_counter()
            for seed in range(args.seed, args.seed + args.inputs):
                verdict, why = judge(reader, seed)
                counts[verdict] += 1
                if verdict == "FAULT":
                    print(f"  {kind.__name__}, seed {seed}: {why}", file=sys.stderr)
                    reader.fresh()
            bad += counts["FAULT"]
            row = "".join(f"{counts[v]:>{w}}" for v, w in
                          (("right", 8), ("other", 8), ("refused", 9), ("FAULT", 6)))
            seconds = time.perf_counter() - began
            print(f"{kind.__name__:<10}{args.inputs:>8}{row}{seconds:>9.0f}", flush=True)
    return int(bad > 0)


if __name__ == "__main__":
    sys.exit(main())
