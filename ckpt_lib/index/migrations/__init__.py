"""Migrations of the index, run by Alembic."""
