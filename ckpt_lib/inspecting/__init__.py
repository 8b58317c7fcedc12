"""What a checkpoint holds, ours or another program's, told without running code and without reading its tensors."""
