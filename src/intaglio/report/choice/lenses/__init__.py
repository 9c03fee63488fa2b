"""Pictures and tables of each lens: modules with `show(t, lens, trace) -> blocks`."""
