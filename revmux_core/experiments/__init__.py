"""Experiments: matrices of training runs, measured on equal terms and rendered as a report."""
