"""Charts of the pages: Altair draws them when the page is made, as small SVG in the page's own colours.

Why not Vega in the reader's browser: its runtime is 0.9 MB per page, leaves an empty frame
without JavaScript and on paper, and must draw everything anew when the theme changes.
An SVG whose colours are CSS variables needs none of that; hover text is an attribute.
"""
