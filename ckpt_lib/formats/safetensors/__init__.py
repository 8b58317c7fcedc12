"""The ``safetensors`` format: a folder of safetensors files and one JSON file, without a pickle."""
