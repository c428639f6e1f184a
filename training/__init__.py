"""The model line: from data to a verified model in the repository. Run as ``python -m training ARCHITECTURE``."""
