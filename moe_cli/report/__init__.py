"""Many runs side by side: run folders into frames, seeds into intervals, frames into tables. Knows no torch."""
