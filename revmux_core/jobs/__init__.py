"""Classifies whole files, so that a run that was killed goes on where it was: here, or on a Ray cluster."""
