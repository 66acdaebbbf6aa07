"""The loss, the schedules, and the loop that yields records."""
