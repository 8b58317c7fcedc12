"""Checkpoints in the formats of other programs: written tensor by tensor, in bounded memory."""
