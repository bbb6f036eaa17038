"""Alembic's revisions of the tables in ``schemas/tables.py``; ``stores.sql.migrate`` runs them."""
