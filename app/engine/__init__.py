"""Batching and running models: asyncio on one side, one device thread on the other."""
