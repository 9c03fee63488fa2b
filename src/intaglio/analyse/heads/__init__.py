"""The heads study, from rows and arrays to names, groups and histories: no model."""
