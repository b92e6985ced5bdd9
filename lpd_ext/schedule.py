"""How many positions each step of a generation decodes."""

from lpd_ext import _binary
from lpd_ext.checks import check_int, fail

_MAX_SEQ_LEN = 2**31 - 1  # the largest grid of the orders


def group_sizes(seq_len: int, num_steps: int) -> list[int]:
    """Sizes of the groups, small ones first.

    ::

        size[k] = seq_len * (cos(pi/2 * k / num_steps) - cos(pi/2 * (k + 1) / num_steps))
        rounded, at least 1, corrected to sum to seq_len

    Parameters
    ----------
    seq_len : int
        Positions to decode, 1 to 2^31 - 1.
    num_steps : int
        Number of groups, 1 to ``seq_len``.

    Returns
    -------
    list of int
        ``num_steps`` sizes of at least 1, never falling, that sum to ``seq_len``. For 256 and 1024
        positions and the step counts that were published, the published sizes exactly.

    Raises
    ------
    ValueError
        ``seq_len`` outside 1 to 2^31 - 1, or ``num_steps`` outside 1 to ``seq_len``.
    TypeError
        An argument is no int.

    Notes
    -----
    Source: mit-han-lab/lpd@f447b83; the cosine schedule is that of MaskGIT (arXiv 2202.04200).

    Examples
    --------
    >>> group_sizes(256, 8)
    [1, 15, 24, 32, 40, 45, 49, 50]
    """
    check_int("group_sizes", "seq_len", seq_len, 1)
    check_int("group_sizes", "num_steps", num_steps, 1)
    if seq_len > _MAX_SEQ_LEN:
        fail(ValueError, "group_sizes", "seq_len", f"1 to {_MAX_SEQ_LEN}", seq_len)
    if num_steps > seq_len:
        fail(ValueError, "group_sizes", "num_steps", f"1 to seq_len = {seq_len}", num_steps)
    return _binary.host.group_sizes(seq_len, num_steps)
