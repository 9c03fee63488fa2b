"""The errors a user can meet. All of them are one line: what, got, expected.

    IntaglioError
    |-- InputError            an argument, a file or a row is not what it must be
    |   |-- DataError         a data set: empty, without text, too long, broken encoding
    |   |-- SubjectError      a model: unknown, malformed, pickled, of an unsupported family
    |   `-- RecipeError       a training recipe that cannot be carried out
    |-- StoreError            a run on disk: exists, missing, unknown schema, disk full
    |-- UnmeasurableError     an optimizer, a layer or a loss that the ledger cannot measure
    `-- TrainingError         training had to stop (NaN loss); what was written is kept

Anything else that is raised is a fault of Intaglio itself.
"""

from __future__ import annotations


class IntaglioError(Exception):
    """Base of every error that is the user's to mend. Printed as one line, exit code 2.

    Args:
        what: what went wrong, one clause.
        got: the value that was found, shown with `repr` unless it is a string.
        expected: what would have been right.
    """

    def __init__(self, what: str, *, got: object = None, expected: str | None = None) -> None:
        self.what, self.got, self.expected = what, got, expected
        text = what
        if got is not None:
            text += f"; got {got if isinstance(got, str) else repr(got)}"
        if expected is not None:
            text += f"; expected {expected}"
        super().__init__(" ".join(text.split()))


class InputError(IntaglioError):
    """An argument, a file or a row is not what it must be."""


class DataError(InputError):
    """A data set is empty, lacks text, is too long or has a broken encoding."""


class SubjectError(InputError):
    """A model is unknown, malformed, pickled or of an unsupported family."""


class RecipeError(InputError):
    """A training recipe cannot be carried out."""


class StoreError(IntaglioError):
    """A run on disk exists already, is missing, has an unknown schema, or cannot be written."""


class UnmeasurableError(IntaglioError):
    """An optimizer, a layer or a loss that the ledger cannot measure; named at the start."""


class TrainingError(IntaglioError):
    """Training had to stop; what was written so far is kept and readable."""
