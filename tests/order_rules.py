"""The rules of a locality-aware order, checked on a finished order whatever its randomness was.

Written from the rules, not from the implementations: it never draws, it only asks whether some
random sequence of equal scores could have led to the order.
"""

import math
from itertools import pairwise


class RuleError(Exception):
    """A rule that an order breaks."""


def require(condition, rule):
    if not condition:
        raise RuleError(rule)


def check_order(order, grid, group_sizes, proximity_threshold, repulsion_threshold, known=()):
    """Raise RuleError unless ``order`` (a list) follows the rules."""
    height, width = grid
    require(sorted(order) == list(range(height * width)), "a permutation")
    require(order[: len(known)] == sorted(known), "known positions first, in raster order")
    decoded = set(known)
    start = len(known)
    for size in group_sizes:
        group = order[start : start + size]
        check_group(group, decoded, grid, proximity_threshold, repulsion_threshold)
        decoded.update(group)
        start += size
    require(start == len(order), "groups fill the grid")


def check_group(group, decoded, grid, proximity_threshold, repulsion_threshold):
    height, width = grid
    cells = {p: divmod(p, width) for p in range(height * width)}

    def distances(a, b):
        return abs(cells[a][0] - cells[b][0]), abs(cells[a][1] - cells[b][1])

    def score(position):
        row, col = cells[position]
        near = [
            (r != row) + (c != col)
            for r in range(max(row - 1, 0), min(row + 2, height))
            for c in range(max(col - 1, 0), min(col + 2, width))
            if r * width + c in decoded
        ]
        # Exact as (orthogonal, diagonal) counts; as floats 25 well separated values.
        return near.count(1) + near.count(2) / math.sqrt(2)

    scores = {p: score(p) for p in cells if p not in decoded}
    high = {p for p in scores if scores[p] >= proximity_threshold - 1e-9}

    def repelled_by(position, picks):
        return [p for p in picks if max(distances(position, p)) <= repulsion_threshold]

    # The walk took the longest start of the group whose members are high and repel each other not:
    # whatever was picked later is low or was turned away.
    walked = []
    for position in group:
        if position not in high or repelled_by(position, walked):
            break
        walked.append(position)
    require(
        all(scores[a] >= scores[b] for a, b in pairwise(walked)),
        "the walk goes from high scores to low ones",
    )
    # Every high position passed over was turned away by a pick that can have come before it.
    full = len(walked) == len(group)
    for position in high - set(walked):
        if full and scores[position] <= scores[walked[-1]]:
            continue  # need not have been walked
        before = [p for p in repelled_by(position, walked) if scores[p] >= scores[position]]
        require(before, "the walk passes over a position only where a pick repels it")
    if not full:
        check_rest(group, len(walked), scores, high, distances)


def check_rest(group, num_walked, scores, high, distances):
    """Picks after the walk: farthest-point sampling, or all that is left in sequence."""
    left = set(scores) - set(group[:num_walked])

    def place(position):  # in the sequence, up to equals: low scores first, each by score
        return (position in high, -scores[position])

    if len(left) == len(group) - num_walked:
        rest = group[num_walked:]
        require(
            all(place(a) <= place(b) for a, b in pairwise(rest)),
            "all that is left is taken in sequence",
        )
        return
    for i in range(num_walked, len(group)):
        if i > 0:  # with nothing picked yet, any position may start
            nearest = {
                p: min(sum(d * d for d in distances(p, pick)) for pick in group[:i]) for p in left
            }
            farthest = max(nearest.values())
            require(nearest[group[i]] == farthest, "the farthest position is taken")
            equals = [p for p in left if nearest[p] == farthest]
            require(
                place(group[i]) == min(map(place, equals)), "the first of equally far ones is taken"
            )
        left.remove(group[i])
