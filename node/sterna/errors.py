"""What can go wrong in a node, named by the consequence for the person who runs it."""


class NodeError(Exception):
    """Base of every error a node reports in one line; never raised itself.

    ``exit_code`` is what the command line ends with (docs/howto/exit-codes.md).
    """

    exit_code = 1


class ConfigError(NodeError):
    """The caller asked for something that cannot be; the message says what to change."""

    exit_code = 2


class DataError(NodeError):
    """A data file cannot be trained on; the message names file and line."""

    exit_code = 3


class Unreachable(NodeError):
    """No peer answered in time; trying again later may help."""

    exit_code = 4


class StorageError(NodeError):
    """The disk refused or lost something; nothing acknowledged is gone."""

    exit_code = 5


class VerificationError(NodeError):
    """What the swarm claims does not follow from what it shows."""

    exit_code = 6


class WorkerFailed(NodeError):
    """The training process ended or refused a job."""

    exit_code = 7
