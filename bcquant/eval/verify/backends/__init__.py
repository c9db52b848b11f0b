"""Programs that can run an export; one file each, its name is the key, it exports BACKEND."""
