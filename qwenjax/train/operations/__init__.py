"""What keeps a run going and reports on it: processes, restarts, spikes, hangs, profiles, goodput, words."""
