"""Collects state from models and optimizers, copies it for background saves, and restores it."""
