"""The public names, in reading order: the table of contents."""

from typing import TYPE_CHECKING

from .backend import asnumpy, current, use, using, xp
from .backend.threads import threads
from .generate import generate, stream
from .gradcheck import gradcheck
from .lora import LoRAConfig
from .models.bert import Bert, BertConfig
from .models.deberta import Deberta, DebertaConfig
from .models.gpt2 import GPT2, GPT2Config
from .models.llama import Llama, LlamaConfig
from .models.pretrained import load_base, load_model, save_model
from .models.roberta import Roberta, RobertaConfig
from .tensor import Tensor, no_grad, op, plain
from .training.fit import History, evaluate, fit, train_step
from .training.loss_scale import LossScale
from .training.optim import SGD, Adam, AdamW
from .training.ranks import MPI, Alone

if TYPE_CHECKING:  # the package loads these modules when they are first used
    from . import accounting, analysis, backend, data, kernels, lora, methods, nn, ops, optim

__all__ = [
    "GPT2", "MPI", "SGD", "Adam", "AdamW", "Alone", "Bert", "BertConfig", "Deberta",
    "DebertaConfig", "GPT2Config", "History", "Llama", "LlamaConfig", "LoRAConfig", "LossScale",
    "Roberta", "RobertaConfig", "Tensor", "accounting", "analysis", "asnumpy", "backend", "current",
    "data", "evaluate", "fit", "generate", "gradcheck", "kernels", "load_base", "load_model",
    "lora", "methods", "nn", "no_grad", "op", "ops", "optim", "plain", "save_model", "stream",
    "threads", "train_step", "use", "using", "xp",
]
