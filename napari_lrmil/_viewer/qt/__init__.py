"""Widgets that know no slide."""
