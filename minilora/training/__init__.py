"""Training: optimizers, schedules, loss scaling, `fit`, and a run that can be interrupted."""
