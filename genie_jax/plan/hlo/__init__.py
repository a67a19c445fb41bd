"""Reading compiled programs (optimized HLO) and compiler logs."""
