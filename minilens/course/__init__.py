"""The course: a family to write by oneself, checked line by line; the glossary; what the lessons ask."""
