"""The docks, a folder each: what happens (presenter), what is shown (panel), and the widget that shows it."""
