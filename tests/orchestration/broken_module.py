"""A module whose own code fails."""

VALUE = 1 / 0
