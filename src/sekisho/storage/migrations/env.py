"""Alembic's entry: runs the revisions on the connection that ``storage.migrate`` hands over."""

from alembic import context

from sekisho.storage.schema import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    render_as_batch=True,  # SQLite cannot alter most of a table; Alembic then copies it
    transaction_per_migration=False,
)
context.run_migrations()
