"""The fault matrix: what the promises of docs/DURABILITY.md are tested against, at full numbers (``make torture``)."""
