"""What the services share: messages, settings, files that survive a crash, and processes."""
