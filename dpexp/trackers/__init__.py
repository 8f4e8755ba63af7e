"""Experiment trackers: each job's settings and row, logged when its result is on disk."""
