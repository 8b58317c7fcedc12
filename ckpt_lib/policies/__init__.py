"""When to save and what stays: frozen values and pure functions."""
