"""The room of what an owner may set: `table` lists every setting, `readers` say what each accepts. `models` are what is
set for one model alone, `hours` and `time_zone` say when a node serves, and `earlier` takes over what the earlier
program had; `environment` knows variables that mean nothing here, or something of another program. Where the values
come from is said in `infernet/config.py`.
"""
