"""Floor 1: what is kept. SQLAlchemy; SQLite in WAL mode by default (extra `serve`).

- `tables`: ledger, experience, tasks, experts
- `database`: opening a store, its errors, its integrity check
- `journal`: rows committed before their replies leave, many requests to a commit
"""
