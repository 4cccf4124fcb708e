"""Run folders: their files, locks, states, tags and trash."""
