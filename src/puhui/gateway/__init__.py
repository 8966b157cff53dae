"""Floor 7: any answerer over HTTP, as OpenAI's chat completions (extra `serve`).

- `chat`: requests and replies, whole and streamed
- `app`: the routes, and errors as OpenAI words them
- `server`: a node put together and served
"""
