"""Planning a run for TPUs that are not attached: memory, time and cost."""
