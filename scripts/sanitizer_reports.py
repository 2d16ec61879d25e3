"""What compute-sanitizer reported, one line per kernel and place: used by scripts/gpu_tests."""
import collections
import re

# What is looked at, in parts that run side by side: test program -> {part: GoogleTest filter}. Left out are cases of
# minutes, and those that fill a device on purpose. Racecheck is slower by far and takes fewer lengths.
PARTS = {
    "attention_cuda_test": {
        "prefill": "PrefillCuda.*:-*DenseManyTilesPerBlock:*BlocksOfEverySize:*ShiftedRangesAndColumns",
        "blocks": "PrefillCuda.BlocksOfEverySize",
        "shifted": "PrefillCuda.ShiftedRangesAndColumns",
        "rows16": "PrefillRows16Cuda.*",
        "decode": "Decode*:-*LongRows*:*ManySteps*",
        "choice": "TopK*:WindowScores*:SlashLists*:BlockSparseCuda*:EvictCuda*:-*LongRows*",
        "blocks_chosen": "ChooseBlocksCuda.*",
        "methods": "PrefillMethods*:EvictMethods*",
        "sets": "RandomSets.*",
    },
    "model_cuda_kernels_test": {"": "-CudaKvMemory.AFullDevice*:*LargeMatrices*:Products.*:Loading.*:*AddOfAnyLength*"},
    "model_ops_cuda_test": {"": "-*RunningOutOfMemory*"},
    "model_engine_devices_test": {
        "": "EngineDevices.EveryFamily*:EngineDevices.VariantsDecodeTogether*:EngineDevices.Sparse*"},
}
NOT_UNDER_RACECHECK = {
    "methods": ":-*MethodsCudaLong*",
}
# The kernels of libraries are not ours to mend, and take most of racecheck's time.
OPTIONS = {
    "memcheck": ["--report-api-errors", "explicit", "--print-limit", "200"],
    "racecheck": ["--kernel-name", "kns=lacuna", "--print-limit", "5000"],
}


def commands(tool, sanitizer, tests, port=50000):
    """[(name, command, environment)] for the programs among `tests`: (name, command, environment, seconds)."""
    found = []
    for name, command, environment, _ in tests:
        for part, chosen in PARTS.get(name, {}).items():
            if tool == "racecheck":
                chosen += NOT_UNDER_RACECHECK.get(part, "")
            # Every process looks for its target on ports of its own.
            wrap = [sanitizer, "--tool", tool, "--error-exitcode", "9", "--port", str(port + 20 * len(found)),
                    *OPTIONS[tool]]
            found.append((".".join(filter(None, (f"{tool}_{name}", part))), [*wrap, *command, "--gtest_filter=" + chosen],
                          environment))
    return found


def short(place):
    """'void lacuna::f<T>(int)+0x10 in a.cuh:7' as ('f<T>', 'a.cuh:7')."""
    match = re.match(r"(.*?)\+0x([0-9a-f]+)(?: in (\S+))?", place)
    if not match:
        return place.strip(), ""
    name, offset, line = match.groups()
    depth = 0
    for i, character in enumerate(name):
        depth += (character == "<") - (character == ">")
        if character == "(" and depth == 0 and not name.startswith("(anonymous namespace)", i):
            name = name[:i]
            break
    name = re.sub(r"lacuna::|\(anonymous namespace\)::|^void ", "", name)
    return name, line.rsplit("/", 1)[-1] if line else "+0x" + offset


def reports(text):
    """Counter of (kernel, what and where) over one log."""
    found = collections.Counter()
    lines = [x[9:].strip() for x in text.splitlines() if x.startswith("=========")]
    for i, line in enumerate(lines):
        race = re.match(r"(?:Error|Warning|WARNING|ERROR): (?:Potential )?.*? (?:between|hazard).*?(Write|Read|Atomic)\w* access at (.*)",
                        line)
        if race:
            kernel, at = short(race.group(2))
            places = [f"{race.group(1)} {at}"]
            for other in lines[i + 1:]:
                more = re.match(r"and (\w+) access at (.*?)(?: \[\d+ hazards?\])?$", other)
                if not more:
                    break
                places.append(f"{more.group(1)} {short(more.group(2))[1]}")
            found[kernel, "race: " + " / ".join(dict.fromkeys(places))] += 1
        elif re.match(r"(Invalid|Misaligned|Barrier error|Uninit|Error: |Missing |Out of bounds)", line) and "RACECHECK" not in line:
            at = next((x for x in lines[i + 1:i + 3] if x.startswith("at ")), "")
            kernel, where = short(at[3:]) if at else ("", "")
            extra = next((x for x in lines[i + 1:i + 6] if "misaligned" in x or "out of bounds" in x), "")
            found[kernel, " ".join(filter(None, (line, where, re.sub(r"Address 0x\w+", "address", extra))))] += 1
        elif re.match(r"Program hit |Target application .*(signal|crash)|Internal Sanitizer", line):
            found["", line] += 1
    return found


def summary(found):
    """One line per kernel and place, the kernel with most reports first."""
    total = collections.Counter()
    for (kernel, _), n in found.items():
        total[kernel] += n
    lines, left = [], 0
    for (kernel, what), n in sorted(found.items(), key=lambda x: (-total[x[0][0]], x[0][0], -x[1])):
        mine = sum(1 for line in lines if line[0] == kernel)
        if mine >= 8 or len(lines) >= 60:  # enough to see where it is
            left += 1
            continue
        lines.append((kernel, f"{n:5}x {kernel or '-'}: {what}"))
    return [line for _, line in lines] + ([f"      and {left} more places"] if left else [])
