"""The default format: an ordinary file of ``torch.save``."""
