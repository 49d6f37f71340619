"""The live view of a running node: what it is told (`feed`), what it makes of that (`model`), how it looks (`panels`)
and the program around it (`app`). Only `app` needs Textual.
"""
