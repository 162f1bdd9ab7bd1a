"""The public door to optimizers, schedules and clipping; training/optim.py defines them."""

from .training.optim import SGD as SGD
from .training.optim import Adam as Adam
from .training.optim import AdamW as AdamW
from .training.optim import Optimizer as Optimizer
from .training.optim import clip_grad_norm as clip_grad_norm
from .training.optim import cosine_schedule as cosine_schedule
from .training.optim import linear_schedule as linear_schedule
