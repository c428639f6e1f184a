"""Replicas behind HAProxy that go, die, hang and come back under load, and what clients notice of it."""
