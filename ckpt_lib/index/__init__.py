"""What lists ask, and the database that answers across experiments."""
