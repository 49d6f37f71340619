"""The room of the machine below: files of one user, processes, locks and turns, tools of the system, firewalls, service
managers, and what a process gives up before it meets strangers. Nothing here knows the protocol.
"""
