"""Pages for a browser: `CASE.html` of one scan and `index.html` of a folder. Each stands alone, without a network."""
