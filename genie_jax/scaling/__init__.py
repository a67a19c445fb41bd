"""The paper's scaling study: its sizes and parameter counts."""
