"""From "please look at this" to a label: review items, leases, label events, proposals.

Imports :mod:`schemas` only. All state lives in the one SQL database; a labeling session needs no Kafka.
"""
