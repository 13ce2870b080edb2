"""Models of other ecosystems, named with what their headers say."""
