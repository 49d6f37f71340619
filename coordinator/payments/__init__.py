"""Money that comes in and goes out: the gateway, its webhooks, and what both mean. The ledger is not here."""
