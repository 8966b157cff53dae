"""Floor 1: what is kept. SQLAlchemy; SQLite in WAL mode by default (extra `serve`).

- `tables`: ledger, experience, tasks, experts
- `database`: opening a store, its errors, its integrity check
- `key_table`: keys of the gateway
- `journal`: rows committed before their replies leave, many requests to a commit
- `retention`: text that is too old goes from the disk; `forgetting`: so does what is forgotten
"""
