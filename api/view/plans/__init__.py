"""Reports of plans: their verdict, rivals, graph and timeline."""
