"""What is trained when: tasks, their easier variants, context lengths, and how they are mixed."""

# A training row holds a prompt and its answer. Rows are 1/32 longer than the context they serve, so that a prompt that
# fills 4096 tokens and its answer both fit; every row length divides ROWS.
ROWS = 67584
ROW_LENGTHS = {256: 264, 512: 528, 1024: 1056, 2048: 2112, 4096: 4224, 8192: 8448}
LENGTHS = list(ROW_LENGTHS)
ANSWER_ROOM = {256: 72, 512: 112, 1024: 120, 2048: 128, 4096: 128, 8192: 128}

TASKS = ["ruler_niah", "ruler_vt", "ruler_cwe", "story_retrieval", "story_filtering", "story_multihop"]
REPEAT = len(TASKS)  # the auxiliary task: a random string, twice

# Phase -> (relative weight of each length). Contexts grow; no length is ever dropped for good.
PHASES = [
    {256: 1.0, 512: 1.0},
    {256: 0.5, 512: 2.0, 1024: 1.0},
    {256: 0.25, 512: 1.0, 1024: 2.0, 2048: 1.0},
    {512: 1.0, 1024: 1.0, 2048: 2.0, 4096: 1.0},
    {512: 0.6, 1024: 0.8, 2048: 1.2, 4096: 2.0, 8192: 0.8},
    {512: 0.5, 1024: 0.6, 2048: 1.0, 4096: 1.6, 8192: 1.6},
]
# The latest point (fraction of the run) at which a phase ends; it ends earlier when its longest context is learned.
PHASE_ENDS = [0.06, 0.13, 0.23, 0.36, 0.58, 9.0]
# Weight of the repeat task beside about 1 for each real task.
REPEAT_WEIGHT = [3.0, 0.6, 0.1, 0.05, 0.02, 0.02]
# Lookups get harder: how many things are asked for at once, per phase.
QUERY_WEIGHTS = [{1: 1, 2: 1}, {1: 1, 2: 1, 4: 2}, {1: 1, 2: 1, 4: 3}, {1: .5, 2: .5, 4: 5}, {1: .5, 2: .5, 4: 8}, {1: .5, 2: .5, 4: 8}]
HOP_WEIGHTS = [{1: 2, 2: 1, 3: 1}, {1: 1, 2: 1, 3: 2}, {1: 1, 2: 1, 3: 4}, {1: .5, 2: .5, 3: 6}, {2: .5, 3: 8}, {3: 1}]
# In long contexts more questions are asked at once than the benchmark asks: one prompt then teaches more lookups.
# task -> (questions, room for the answer)
MANY_QUERIES = {"ruler_niah": (8, 216), "story_retrieval": (16, 176)}
# Nothing is sold in the mini stories: the text names an item only where it is bought.
STORY = {"sale_chance": 0}


def variants(task, phase, context):
    """[(parameters, room for the answer, weight)] of a task in a phase; the parameters are those of `lacuna tasks -p`."""
    room = ANSWER_ROOM[context]
    fixed = STORY if task.startswith("story") else {}
    if task in MANY_QUERIES:
        most = 2 if context == 256 else 4  # four answers do not fit into the shortest rows
        options = [({"num_queries": n} | fixed, room, w) for n, w in QUERY_WEIGHTS[phase].items() if n <= most]
        if context >= 2048:
            questions, many_room = MANY_QUERIES[task]
            options.append(({"num_queries": questions} | fixed, many_room, 12.0))
        return options
    if task == "ruler_vt":
        return [({"num_hops": n}, room, w) for n, w in HOP_WEIGHTS[phase].items()]
    return [(fixed, room, 1.0)]
