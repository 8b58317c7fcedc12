"""Models and optimizers to state, and back."""
