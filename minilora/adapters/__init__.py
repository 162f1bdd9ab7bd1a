"""The registry of adapters: what is attached to a model, and every verb for it."""
