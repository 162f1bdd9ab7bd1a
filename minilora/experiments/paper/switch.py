"""§4.2 and footnote 4: many tasks on one base, which are swapped by exchanging A and B."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ... import lora
from ...backend import asnumpy
from ...jobs.driver import Job
from ...models.pretrained import load_base, load_model, save_model
from ...tensor import no_grad
from .. import timing
from ..cells import Scale
from ..experiment import FAILS, REPRODUCES, Claim, Experiment, Table, Verdict, larger
from ..results import Results
from ..timing import more

BASE, TASKS, FEW = "shakespeare", 100, 5  # 100 tasks, as in footnote 4; FEW in a smoke run
CONFIG = lora.LoRAConfig(r=4, alpha=4.0, targets=("q", "v"))
TENTH = 0.1


def switch(base: str, tasks: int, blocks: int) -> dict[str, Any]:
    """Return the bytes of files, what the swaps left in the base and outputs, and "times".

    same      tasks whose outputs after all swaps have the bits that they had at first
    changed   numbers of the base that are different at the end
    summed    share of the numbers of one W that change if ΔW is added and subtracted instead
    """
    model, ids = load_base(base), np.arange(16)[None]
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    with tempfile.TemporaryDirectory() as folder, no_grad():
        whole = save_model(model, Path(folder, "model.npz"))
        files, outputs = [], []
        for task in range(tasks):
            trained(model, task)
            files.append(Path(lora.save(model, Path(folder, f"{task}.npz"))))
            outputs.append(asnumpy(model(ids).data))
            lora.detach(model)
        same = 0
        for file, output in zip(files, outputs):  # one task after the other, merged and not
            lora.load(model, file, name="task")
            with lora.merged(model):
                model(ids)
            same += bool(np.array_equal(asnumpy(model(ids).data), output))
            lora.detach(model)
        after = dict(model.named_parameters())
        result: dict[str, Any] = {
            "model": whole.stat().st_size, "adapters": sum(f.stat().st_size for f in files),
            "same": same, "summed": summed(before["blocks.0.attn.q.W"], tasks),
            "changed": sum(int((x != after[name].data).sum()) for name, x in before.items()),
        }
        lora.load(model, files[0], name="task")

        def swap() -> None:
            lora.detach(model)
            lora.load(model, files[-1], name="task")

        result["times"] = timing.in_turns(
            {"adapter": swap, "model": lambda: load_model(whole)}, blocks)
    return result


def trained(model: Any, task: int) -> None:
    """Attach an adapter with a random B, in place of a training run."""
    lora.attach(model, CONFIG, name="task", rng=task)
    rng = np.random.default_rng([task, 1])
    for name, p in model.named_parameters():
        if name.endswith(".B"):
            p.data = rng.normal(0.0, 0.02, p.shape).astype("float32")


def summed(W0: np.ndarray, tasks: int) -> float:
    """Return the share of a W's numbers that change if each ΔW is added, then subtracted.

    The products are summed element by element, so that every machine rounds alike.
    """
    W = W0.copy()
    for task in range(tasks):
        rng = np.random.default_rng(task)
        B, A = (rng.normal(0.0, 0.02, (n, CONFIG.r)).astype("float32") for n in W.shape)
        dW = np.zeros_like(W)
        for i in range(CONFIG.r):
            dW += B[:, i, None] * A[:, i]
        W += dW
        W -= dW
    return float((W != W0).mean())


def job(scale: Scale) -> Job:
    config = {"base": BASE, "tasks": FEW if scale.fast else TASKS,
              "blocks": timing.blocks_for(scale.fast)}
    return Job("switch", config, "swapping adapters", alone=True)


def of(results: Results) -> dict[str, Any]:
    return dict(results.job(job(results.scale)))


def tasks_of(results: Results) -> int:
    return int(job(results.scale).config["tasks"])


def bytes_of(results: Results) -> tuple[int, int]:
    """Return the bytes of one base and all adapters, and of one model for each task."""
    found = of(results)
    return found["model"] + found["adapters"], tasks_of(results) * found["model"]


def stores_little(results: Results) -> Verdict:
    """The files of one base and of 100 adapters have less than a tenth of the bytes of 100 models.
    This is exact."""
    shared, apart = bytes_of(results)
    return Verdict(REPRODUCES if shared < TENTH * apart else FAILS,
                   f"{shared:,} bytes against {apart:,}: {shared / apart:.2%}")


def swaps_fast(results: Results) -> Verdict:
    """To detach an adapter and to load another from its file takes less time than to load a model
    from its file, by more than the noise floor."""
    share = -more(of(results)["times"], "adapter", "model")
    return larger([timing.measured("share of time saved", share, np.zeros_like(share))])


def gives_the_base_back(results: Results) -> Verdict:
    """After all swaps, merged and unmerged, no number of the base has changed, and each task has
    the outputs that it had at first, in every bit. This is exact."""
    found, n = of(results), tasks_of(results)
    right = found["changed"] == 0 and found["same"] == n
    return Verdict(REPRODUCES if right else FAILS,
                   f"{found['changed']} numbers of the base changed, {found['same']} of {n} tasks "
                   f"have the same outputs; adding and subtracting ΔW would change "
                   f"{found['summed']:.0%} of a W's numbers")


def tables(results: Results) -> list[Table]:
    found, n = of(results), tasks_of(results)
    shared, apart = bytes_of(results)
    return [
        Table(f"{n} tasks", ["", "one base and adapters", "a model for each task"], [
            ["bytes of all files", f"{shared:,}", f"{apart:,}"],
            ["bytes for one more task", f"{found['adapters'] // n:,}", f"{found['model']:,}"],
            ["ms to swap", *(timing.median_ms(found["times"], name)
                             for name in ("adapter", "model"))],
            ["numbers of the base that swaps change", found["changed"], ""],
        ], "bytes and numbers are counted; ms: of one processor, measured in turns, without the "
           "time that a disk takes"),
    ]


def changing(**wrong: Any) -> Any:
    """Return a planted mistake: Results -> Results with other numbers of this experiment."""
    def change(job: Job, result: Any) -> Any:
        if job.kind != "switch":
            return result
        return result | {name: f(result) for name, f in wrong.items()}

    return lambda results: results.changed(change)


EXPERIMENT = Experiment(
    name="switch", title="Can many tasks share one base?", tables=tables, noise=timing.NOISE,
    jobs=lambda results: [job(results.scale)],
    claims=(
        Claim(
            "One base and many small adapters need far less storage than many models.",
            "footnote 4", "GPT-3, 100 tasks: 354 GB against 35 TB", stores_little,
            "adapters as large as models",
        ),
        Claim(
            "One switches between tasks at a lower cost, by swapping only A and B.", "§4.2",
            "the paper prints no time", swaps_fast, "the model is loaded again",
        ),
        Claim(
            "To subtract BA and to add B'A' recovers W0 and switches tasks.", "§4.1",
            "the paper prints no error; sums that are rounded do not give W0 back exactly",
            gives_the_base_back, "added and subtracted",
        ),
    ),
    blunders={
        "adapters as large as models": changing(
            adapters=lambda found: found["model"] * TASKS),
        "the model is loaded again": changing(
            times=lambda found: dict.fromkeys(found["times"], found["times"]["model"])),
        "added and subtracted": changing(changed=lambda found: round(1e4 * found["summed"])),
    },
    toy="A base with 1.4 million parameters; B is random, in place of 100 training runs.",
)
