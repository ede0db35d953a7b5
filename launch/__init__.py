"""Pods and clusters: rehearsed here, planned, and launched there."""
