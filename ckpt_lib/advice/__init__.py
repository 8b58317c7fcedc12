"""What can go, and what that frees: advice about checkpoints in a store, and in folders of any program."""
