"""The pages: the market at a glance, and the public chat. Optional; everything on them goes through the public API."""
