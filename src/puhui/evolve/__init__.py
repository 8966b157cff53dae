"""Floor 5: experts are found, learned, proven, put in place and replaced; in a process of its own.

- `traffic`: which requests are of one kind, and what varies in them
- `discovery`: the jobs that repeat
- `gate`: what a candidate has to prove
- `memory`: the store, as learning sees it
- `learner`: the loop; `process`: its process, as the node starts it
"""
