"""Floor 2: big models that are one to the node: chosen by weight and rank, retried, hedged, left alone while they fail.

- `pool`: the big models as one answerer
- `upstream`: one of them, with its health
- `upstream_settings`: what can be said of one
- `breaker`: leaves an upstream alone that fails
- `retry`: asks again, later and later
- `hedge`: asks a second one when the first is slow
- `weights`: who is asked first
- `suitable`: who may be asked, by what the request needs
- `recent`: how long answers took of late
"""
