"""The room of what a node and its owner tell each other, over a Unix socket that only this user can reach: `client` for
the commands, `server` in the node. `inspection` and `why` make what the node says of itself.
"""
