"""What can go wrong between a trigger and a promoted model, as errors that say what to do."""

from __future__ import annotations

from schemas.errors import FlywheelError, UsageError


class ArtifactRefusedError(FlywheelError):
    """The model artifact is not what the registry says it is."""

    action = "Do not serve it; roll back with 'flywheel models rollback MODEL' or train again."


class TrainerFailedError(FlywheelError):
    """The trainer did not give a model."""

    action = "Read its log, which stands beside the run's report."


class TrainerTimeoutError(TrainerFailedError):
    """The trainer took longer than its time limit."""

    action = "Raise 'time_limit_s' or train on fewer rows."


class TrainerMemoryError(TrainerFailedError):
    """The trainer needed more memory than its limit."""

    action = "Raise 'memory_limit_mb' or train on fewer rows."


class ParityError(FlywheelError):
    """The feature code of training did not give features."""

    action = "Try it with 'flywheel parity --model MODEL'; see 'function' under [models.MODEL.parity]."


class NoParityError(UsageError):
    """There is nothing to recompute, or no feature code to do it with."""

    action = "Log inputs first, and name the function under [models.MODEL.parity] of flywheel.toml."


class RunInProgressError(FlywheelError):
    """Another retraining run of this model is under way."""

    action = "Wait for it to end; 'flywheel retrain history' shows it."


class LeaseLostError(FlywheelError):
    """This run lost its lease: another process took it over and this one's result is not used."""

    action = "Nothing needs doing: the run that holds the lease decides."


class DatasetIncompleteError(FlywheelError):
    """Records that the dataset was built from are gone from the archive."""

    action = "Restore the archive's files; the dataset's own Parquet file is still in place."


class DatasetRefusedError(FlywheelError):
    """The dataset did not pass its own checks."""

    action = "See the failed checks in the dataset's manifest."


class NotEnoughRowsError(FlywheelError):
    """There are too few rows with a known truth to train on."""

    action = "Wait for more feedback, or give a table with 'flywheel retrain run --initial TABLE'."


class UnknownVersionError(UsageError):
    """The registry has no such version."""

    action = "'flywheel models list' shows what there is."


class ApprovalRevokedError(FlywheelError):
    """The version's approval was revoked by a rollback."""

    action = "Promote another version, or give --override with a reason."
    exit_code = 3


class AliasMovedError(FlywheelError):
    """The alias moved since this decision was prepared, so the decision is not carried out."""

    action = "Judge the challenger against the version that is deployed now."
