"""Floor 8: the node's pages for people. Plain files that a browser reads, and their routes (`pages`).

They speak to the gateway over HTTP only, from the browser: no page holds data of its own.
"""
