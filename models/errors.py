"""Every error the models raise.

* ModelError
  x UnknownModel      no model of that name is registered
  x CheckpointError   a checkpoint can't be read, or doesn't fit the model it describes
"""


class ModelError(Exception):
    """Base class: the message is one sentence fit for a user."""


class UnknownModel(ModelError):
    """No model of that name is registered."""


class CheckpointError(ModelError):
    """The file is no checkpoint that we read, or its tensors don't fit."""
