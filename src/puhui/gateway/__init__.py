"""Floor 7: any answerer over HTTP, as OpenAI's chat completions (extra `serve`).

- `chat`: requests and replies, whole and streamed
- `app`: the routes, and errors as OpenAI words them
- `door`, `key_ring`, `allowance`, `admin`: keys, and what each may do, use and spend
- `node_api`, `expert_view`, `live_feed`: the node's own API, which its pages read
- `server`: a node put together and served
"""
