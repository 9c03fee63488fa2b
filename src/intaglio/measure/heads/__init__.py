"""The heads study: who specialised in what.  [torch]"""
