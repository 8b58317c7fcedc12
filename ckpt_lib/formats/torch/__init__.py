"""The default format: an ordinary ``torch.save`` file."""
