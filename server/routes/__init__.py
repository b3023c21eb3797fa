"""One file a wire format: HTTP in, HTTP out, nothing else."""
