"""What the coordinator keeps: one SQLite database, one writer, one file per table.

A table's file holds a dataclass, functions for the writer (they take a `sqlite3.Connection` inside a transaction)
and functions for readers (they take an `aiosqlite.Connection` and are awaited). Prompts and answers have no column.
"""
