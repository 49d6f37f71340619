"""The room of what carries the peer's streams: `transport` over libp2p, `link` over the coordinator's WebSocket,
`loopback` to the node itself, and the bounded `outbox` of what waits to be written.
"""
