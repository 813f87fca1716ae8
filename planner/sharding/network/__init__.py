"""The sharding search as a network of choices: built, reduced, bounded and solved."""
