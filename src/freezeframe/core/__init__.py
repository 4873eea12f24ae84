"""Values only: units, extents, errors, progress. Imports nothing of ours."""
