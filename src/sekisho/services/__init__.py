"""Policy: one flow, one file. Knows no HTTP and no SQL."""
