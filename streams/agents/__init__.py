"""The control plane: thin Faust agents and timers on the low-volume topics.

An agent decodes, calls logic or a store in a thread, and acknowledges. Handlers are idempotent; state lives in SQL.
What an agent cannot work on becomes a dead letter; a database that does not answer is waited for.
"""
