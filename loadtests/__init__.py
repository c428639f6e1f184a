"""Measuring the service: payloads, load generators, and the servers it is compared with."""
