"""minilora: LoRA (arXiv 2106.09685) on NumPy, small enough to read in one sitting."""

from . import backend, data, kernels, lora, nn, ops, optim
from .backend import asnumpy, current, use, using, xp
from .backend.threads import threads
from .generate import generate
from .gradcheck import gradcheck
from .lora import LoRAConfig
from .loss_scale import LossScale
from .models import GPT2, GPT2Config, load_base, load_model, save_model
from .optim import SGD, Adam, AdamW
from .tensor import Tensor, no_grad, op, plain
from .train import History, evaluate, fit

__version__ = "0.1.0"

__all__ = [
    "GPT2",
    "SGD",
    "Adam",
    "AdamW",
    "GPT2Config",
    "History",
    "LoRAConfig",
    "LossScale",
    "Tensor",
    "asnumpy",
    "backend",
    "current",
    "data",
    "evaluate",
    "fit",
    "generate",
    "gradcheck",
    "load_base",
    "load_model",
    "lora",
    "nn",
    "no_grad",
    "ops",
    "optim",
    "save_model",
    "use",
    "xp",
]  # fmt: skip
