"""The room of the node's money: `performer` does what the peer decides, `store` holds what must not be forgotten and
`writer` writes it in time; `client` asks the coordinator over HTTP, and `claims` are on their way to it.

The rules are in `protocol`: nothing here decides who owes whom.
"""
