"""The sections of the shift page: each turns findings into the words, numbers and charts of one section."""
