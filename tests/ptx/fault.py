"""What is wrong with a kernel."""


class Fault(Exception):  # noqa: N818  (a kernel's fault, not the interpreter's error)
    """Raised where a kernel does what no kernel may.

    Parameters
    ----------
    message
        What it did.
    index
        Which of the lanes that executed the instruction did it.
    """

    def __init__(self, message, index=0):
        super().__init__(message)
        self.index = index


def check(is_bad, message):
    """Raise a Fault of the first lane for which an array is true."""
    if is_bad.any():
        index = int(is_bad.argmax())
        raise Fault(message(index) if callable(message) else message, index)
