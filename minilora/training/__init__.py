"""Training: optimizers, schedules, loss scaling, `fit`, and runs that can be interrupted."""
