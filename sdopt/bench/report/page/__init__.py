"""The report of one stored run: facts, charts and images in one HTML file, and as Markdown."""
