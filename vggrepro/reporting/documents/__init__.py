"""Reports as documents: Markdown, HTML, LaTeX, CSV, figures."""
