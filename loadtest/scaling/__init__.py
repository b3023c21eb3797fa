"""How cost grows: the engine's and the server's throughput, latency and memory, as one thing at a time grows."""
