"""Telling people of alerts: by webhook, Slack-compatible JSON, Alertmanager, e-mail, or a line in a file.

What is to be told is queued in the transaction that keeps the alert, and sent by a timer of its own: a notifier that
fails is asked again, later and later, and keeps nothing else waiting. Each alert is told at least once by each
notifier, under its own id.
"""
