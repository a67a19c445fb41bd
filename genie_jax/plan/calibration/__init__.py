"""Plans of published training runs, to check the estimates of a plan."""
