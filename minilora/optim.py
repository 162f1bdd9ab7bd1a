"""The public door to optimizers, schedules and clipping; training/ defines them."""

from .training.optim import SGD as SGD
from .training.optim import Adam as Adam
from .training.optim import AdamW as AdamW
from .training.optim import Optimizer as Optimizer
from .training.schedules import clip_grad_norm as clip_grad_norm
from .training.schedules import cosine_schedule as cosine_schedule
from .training.schedules import linear_schedule as linear_schedule
