"""Sekisho: authentication for Python services. This is the front door; importing it loads no server library."""
