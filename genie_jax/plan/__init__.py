"""Memory, time and cost of a run, planned without an attached TPU."""
