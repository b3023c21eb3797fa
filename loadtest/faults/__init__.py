"""Breaks running servers, one fault a case, and says what their clients saw."""
