"""How this node learns of others: several sources whose union is used, and none of which is trusted (specs/03).

A source may be wrong, hostile or away. What it says is a hint: an address is proven by the handshake with the key it
should lead to, a record by its signature. Gossip, the best source, needs no room here: it lives in the protocol.
"""
