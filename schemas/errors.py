"""Every error that an operator may meet, and what is done with it.

The docstring of a class is its default message; ``action`` says what to do about it. Programmer errors are asserts,
expected outcomes are values: neither belongs here.
"""

from __future__ import annotations

import inspect
from enum import Enum
from typing import ClassVar


class Disposition(Enum):
    """What the running system does when it meets an error."""

    RETRY = "retry"
    DEAD_LETTER = "dead letter"
    HALT = "halt"


class FlywheelError(Exception):
    """Flywheel could not do what was asked."""

    action: ClassVar[str] = ""
    exit_code: ClassVar[int] = 1
    disposition: ClassVar[Disposition] = Disposition.HALT

    def __init__(self, message: str | None = None, *, action: str | None = None) -> None:
        self.message = message or inspect.cleandoc(type(self).__doc__ or "")
        self.advice = action if action is not None else type(self).action
        super().__init__(self.message)

    def __str__(self) -> str:
        return f"{self.message} {self.advice}".strip()


class UsageError(FlywheelError):
    """The command or the configuration is not usable as it stands."""

    exit_code = 2


class ConfigError(UsageError):
    """The configuration is not valid."""

    action = "Run 'flywheel config validate'."


class GateRefusedError(FlywheelError):
    """The gate refused the challenger."""

    action = "The run's report says which rule; nothing was promoted."
    exit_code = 3


class ContractIncompatibleError(FlywheelError):
    """The contract is not compatible with what is released."""

    action = "Keep to what it may read (give new fields a default), or release it as a new model."
    exit_code = 4


class ContractError(UsageError):
    """The contract file is not a valid contract."""

    action = "Correct the .avsc file; 'flywheel schemas check FILE' names each problem."


class DecodeError(FlywheelError):
    """A record cannot be decoded."""

    disposition = Disposition.DEAD_LETTER


class UnknownSchemaError(DecodeError):
    """The record names a schema id that the registry does not know."""

    action = "Register the producer's schema with 'flywheel schemas register'."


class RegistryUnreachableError(FlywheelError):
    """The schema registry does not answer."""

    action = "Check the registry's URL; records wait until it answers."
    disposition = Disposition.RETRY


class DatabaseNewerError(FlywheelError):
    """The database was made by a newer version of Flywheel."""

    action = "Upgrade this installation, or point 'database' at another one."


class DatabaseUnreachableError(FlywheelError):
    """The database does not answer."""

    action = "Check the database URL and that the server runs."
    disposition = Disposition.RETRY


class BrokerUnreachableError(FlywheelError):
    """No Kafka broker answers."""

    action = "Check 'brokers', or start the embedded one with 'flywheel up'."
    disposition = Disposition.RETRY


class StateLockedError(FlywheelError):
    """Another Flywheel process uses this state directory."""

    action = "Stop it, or choose another 'state_dir' (for a second worker of one Kafka: 'join_store')."


class PortBusyError(FlywheelError):
    """The port of the status page is in use."""

    action = "Choose another with --web-port, or stop the program that holds it."


class RecordsGoneError(FlywheelError):
    """Records that were not yet worked on are gone from the topic."""

    action = "Accept the loss with 'flywheel worker --accept-loss', or restore the topic."


class TopicLayoutError(FlywheelError):
    """The topics of inputs, predictions and feedback do not fit together."""

    action = "Give the three topics the same number of partitions."
