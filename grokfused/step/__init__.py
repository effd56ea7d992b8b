"""One step: the rooms that make its numbers, and the walk and engine that take it."""
