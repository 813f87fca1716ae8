"""Rules that replace operators by smaller ones, whose loops are declared."""
