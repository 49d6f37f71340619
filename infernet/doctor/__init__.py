"""The room of `infernet doctor`: what can be wrong with a node, found out one thing at a time.

Each check looks at one thing, has an id that never changes its meaning, and changes nothing. `table` lists them all,
`examination` runs them, and the other files hold one family of checks each.
"""
