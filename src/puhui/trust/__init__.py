"""Floor 1: why one may believe what one loads.

- `keys`: Ed25519 signatures
- `api_keys`: keys of the gateway, and what each may do
- `redaction`: personal matter in texts
"""
