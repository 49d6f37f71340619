"""The core: node API, link, chat, public lists. Everything that a market needs and no page."""
