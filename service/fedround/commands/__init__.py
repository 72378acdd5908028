"""Commands that ask running services."""
