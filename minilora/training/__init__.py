"""Training: optimizers, schedules, loss scaling, `fit`, runs that can be interrupted, ranks."""
