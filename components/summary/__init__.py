"""A line's data quality for people to browse: one page, and Great Expectations' Data Docs."""
