"""The schema's history, as Alembic revisions. They travel inside the package."""
