"""Commands that query running services."""
