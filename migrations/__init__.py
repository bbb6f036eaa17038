"""Alembic's revisions of the tables in ``schemas/tables.py``; ``stores.migration.migrate`` runs them."""
