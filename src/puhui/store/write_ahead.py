"""SQLite's write-ahead log: what is committed lies in it first, and has to be moved into the store's file.

SQLite begins the log anew only where all of it is moved and nobody reads it at the moment of the next commit. Under a
load that never pauses no such moment comes, and the log grows as long as the load lasts: 60 MB in 15 s were measured.
"""

from __future__ import annotations

import os

from puhui.store.database import Store

WAIT_FOR_READERS_MS = 100


def log_bytes(store: Store) -> int:
    """How large the log's file is; 0 where there is none."""
    try:
        return os.stat(f"{store.engine.url.database}-wal").st_size
    except OSError:
        return 0


def move_log(store: Store) -> int:
    """Moves the log into the store's file, as far as nobody reads what is there; returns how many pages the log has.

    It waits for nobody and holds up nobody.
    """
    with store.begin() as connection:
        return int(connection.exec_driver_sql("PRAGMA wal_checkpoint(PASSIVE)").one()[1])


def empty_log(store: Store) -> bool:
    """Moves the log into the store's file and cuts it to nothing; False if readers are in the way."""
    if store.engine.dialect.name != "sqlite":
        return True
    with store.explained(), store.engine.connect() as connection:
        # It holds up whoever writes while it waits for readers: better soon again than long.
        connection.exec_driver_sql(f"PRAGMA busy_timeout={WAIT_FOR_READERS_MS}")
        busy = connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)").one()[0]
        connection.invalidate()  # its patience is not for others
    return not busy


def keep_log_short(store: Store, most_pages: int) -> None:
    """Moves the log; where it has more pages than that, those who write wait some milliseconds until it is empty."""
    if move_log(store) > most_pages:
        move_log(store)  # what has come meanwhile, so that little is left to wait for
        empty_log(store)
