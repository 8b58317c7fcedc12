"""From a stored checkpoint to verified state, in a dict and in models, optimizers and schedulers."""
