"""Every error that a user can cause, in one family.

The command line prints its text and exits with 2, or with 1 for a TrainingError, whose request was valid.
"""


class MoeError(Exception):
    """An error that the user can fix. Its text says what is wrong, what was given and what to do."""


class ConfigError(MoeError):
    """A setting that is unknown, of the wrong type, out of range or in conflict with another."""


class BadValue(ConfigError):
    """A value that is invalid in every configuration: of a wrong type, or out of range."""


class DataError(MoeError):
    """Data that is missing, empty, unreadable or too short."""


class Unwritable(DataError):
    """Data that cannot be kept in the outputs folder."""


class RunNotFound(MoeError):
    """No run, or more than one, answers to the name given."""


class RunBusy(MoeError):
    """Another process is writing in the run folder."""


class CheckpointError(MoeError):
    """A checkpoint that is absent, damaged or made for another configuration."""


class UnsafePath(MoeError):
    """A link or a special file where the program writes or deletes, so that something elsewhere would change."""


class TrainingError(MoeError):
    """Training cannot continue, for example because the loss is not finite."""


class LostProcess(TrainingError):
    """Another process of the same training has died."""


class DiskFull(TrainingError):
    """No space is left for a checkpoint or a record. Earlier files are intact."""
