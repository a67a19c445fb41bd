"""Pipelines that turn raw sources into clips."""
