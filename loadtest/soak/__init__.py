"""More load than a server can take, for long and all at once, with every request accounted for."""
