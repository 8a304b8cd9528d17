"""Mode connectivity: pairs of networks trained under different conditions, and the line between."""
