"""The room of the engines: what turns prompts into text, each in a process of its own."""
