"""Floor 1: why one may believe what one loads.

- `keys`: Ed25519 signatures
"""
