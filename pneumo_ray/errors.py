"""Errors that a user can act on: one sentence each, printed by the jobs without a traceback (exit code 2)."""


class PneumoError(Exception):
    """A user's mistake or a condition outside the program: what is wrong, with which file or option, and what to do."""

    exit_code = 2
    """Of a job that ends with it."""


class ConfigError(PneumoError):
    """An option, or a combination of options, that cannot work."""


class ArchiveError(PneumoError):
    """An archive that is missing, empty or cannot be listed."""


class ManifestError(PneumoError):
    """A manifest or label table that breaks the contract of names."""


class LeakageError(PneumoError):
    """A patient or an exact duplicate is in more than one split."""


class StorageError(PneumoError):
    """A file or folder that cannot be read or written."""


class ModelError(PneumoError):
    """A model, weights file or bundle that cannot be built or trusted."""


class StudyFailedError(PneumoError):
    """A study of which no trial finished: it ran to its end, and there is nothing to choose from."""

    exit_code = 1


class DriftAlarm(PneumoError):
    """Scores differ from the reference by more than chance and by enough to matter; asked for with --alarm."""

    exit_code = 3


class ClusterError(PneumoError):
    """The Ray cluster does not have what the job asks for."""


class DecodeError(PneumoError):
    """Bytes that are not a readable radiograph. `kind` is a short stable name, used in rows and audits."""

    kind = "decode"
