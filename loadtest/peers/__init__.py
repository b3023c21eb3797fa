"""Our server beside other servers: the same model and sentences, in turn, on one machine, in one table."""
