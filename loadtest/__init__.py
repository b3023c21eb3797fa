"""Load test: drives a plain and a multiplexed server over HTTP with the same sentences and reports both."""
