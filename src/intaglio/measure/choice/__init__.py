"""The choice study: what made one next token win, part by part.  [torch]"""
