"""Training: pure steps, one loop, a task per stage."""
