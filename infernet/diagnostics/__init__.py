"""The room of `infernet report`: what others need to help with a node, and nothing that says whose it is.

What has a known shape is shown by a list of what may be shown: settings, counters, fields of the log. What is free
text passes the redactor, which knows the words that may stay and names what it takes out by its kind: `<node-1>` is
the same node everywhere in one report.

`redactor` works on texts (`shapes` is what it recognises), `log_lines` on the log, `settings_shown` on the
configuration, and `bundle` puts a report together.
"""
