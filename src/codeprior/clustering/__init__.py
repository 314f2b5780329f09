"""Clusterings of code vectors: exact average linkage (DCPE) and the methods that it is compared with."""
