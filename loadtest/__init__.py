"""Load test: drives a plain and a fast server over HTTP with the same sentences and reports both."""
