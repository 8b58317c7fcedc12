"""A training command as a child process: started, watched, stopped with all that it has started, and started again."""
