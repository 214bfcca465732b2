"""The HTTP side: takes from HTTP, makes one call, gives to HTTP."""
