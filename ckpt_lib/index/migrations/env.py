"""What Alembic runs: migrations, in the transaction of the connection that it is given."""

from alembic import context

from ckpt_lib.index.tables import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transactional_ddl=True,
)
with context.begin_transaction():
    context.run_migrations()
