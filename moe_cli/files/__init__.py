"""Files of runs, caches and outputs folders: read with bounds, written through no link, checksummed."""
