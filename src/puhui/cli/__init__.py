"""Floor 9: the command `puhui` (extra `serve`). It alone reads the environment.

- `main`: the commands and how errors end; one module for each command; `options`: what they share
"""
