"""Preprocessing shared by training and serving: numpy, Pillow and the standard library only."""
