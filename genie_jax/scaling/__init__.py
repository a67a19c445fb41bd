"""The paper's scaling study: model sizes, parameter counts and chips."""
