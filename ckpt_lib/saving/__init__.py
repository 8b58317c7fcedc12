"""From a call to a committed checkpoint."""
