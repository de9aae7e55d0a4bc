"""The errors a user can meet. Each message names the file, the field, the value and the mend.
Every package raises these; command lines print them as one line without a traceback."""


class CAFTError(Exception):
    """Base of every error that is the user's to mend."""


class ConfigError(CAFTError):
    """A configuration file, key or value that cannot be used."""


class DataError(CAFTError):
    """A source, image list or dataset folder that cannot be used."""


class CheckpointError(CAFTError):
    """A checkpoint that is missing, incomplete or does not fit."""


class NumericsError(CAFTError):
    """A loss, gradients or weights that are not finite."""


class ClusterError(CAFTError):
    """A port, address or Ray cluster that cannot be used."""


class StorageError(CAFTError):
    """A path that cannot be read or written: missing, full, no permission."""


class OwnedError(CAFTError):
    """An output that another run writes."""


class UnidentifiedError(CAFTError):
    """A parameter of a scaling law that the runs do not determine."""


class UnexpectedError(CAFTError):
    """An exception that nothing foresaw, in a stage or in one of its tasks."""
