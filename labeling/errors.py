"""What can go wrong between a reviewer and the store."""

from __future__ import annotations

from schemas.errors import FlywheelError, UsageError


class StaleLeaseError(FlywheelError):
    """The item is no longer leased to you: your time ran out and it went back to the queue, or it is decided."""

    action = "What you wrote is kept ('flywheel labels list --kept'); take the next item."


class AlreadyLabeledError(FlywheelError):
    """You have already decided on this item."""

    action = "Take your decision back with 'flywheel labels undo' first."


class ItemNotOpenError(FlywheelError):
    """The item cannot be taken now: it is decided, flagged, or another reviewer has it."""

    action = "See its state with 'flywheel labels list'."


class UnknownItemError(UsageError):
    """There is no such item."""

    action = "List the items with 'flywheel labels list'."


class InvalidDecisionError(UsageError):
    """The decision does not fit the item."""

    action = "Give a label of the contract, a verdict, or both."


class UnknownProposalError(UsageError):
    """There is no such proposal."""

    action = "List them with 'flywheel labels proposals list'."


class ProposalClosedError(FlywheelError):
    """The proposal is already decided or was withdrawn."""

    action = "List the open ones with 'flywheel labels proposals list'."


class NotOwnerError(FlywheelError):
    """Only an owner of the model may decide on proposals."""

    action = "Ask one of the 'owners' in [models.NAME.labeling], or add yourself there."


class ChainBrokenError(FlywheelError):
    """The chain of label events is broken: an event was changed, removed or added outside Flywheel."""

    action = "Restore the database from a backup; compare with the 'labels' topic."
