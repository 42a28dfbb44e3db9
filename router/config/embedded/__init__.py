"""The embedded store: google.spanner.v1 on SQLite, so that the unmodified Spanner client works against it.

`StoreServer` (server.py) binds and stops; below it, from the wire inwards:

    service_admin, service_spanner, service_streams   one method per RPC: requests in, messages out
    transactions, validation, sql/                    read-write transactions; the SQL subset
    database, garbage                                 commits, snapshots, DDL; the only writer
    workspace, changes, partitions                    what a commit changes, and the records it leaves
    catalog, ddl, schema                              tables, indexes, change streams
    storage, keys, values, timestamps                 rows with validity intervals in SQLite

Everything of one server runs on one event loop, in slices: a commit is one SQLite transaction without an await, and
long reads give the loop back between chunks. Nothing of what comes from the wire reaches SQLite as SQL text.
"""
