"""Pipeline schedules as data: builders, the registry by name, and where model chunks run."""
