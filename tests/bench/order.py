"""Writes link.ld: the order of the code in an optimised binary. What a proxy runs from its start to its first exchanges is
put side by side, and the rest behind it. The kernel maps a file's pages sixteen at a time, so code that is spread over the
binary costs sixteen pages of resident memory for each that is used.

    valgrind --tool=callgrind --demangle=no --callgrind-out-file=A target/release/weft sidecar …    (end it with SIGTERM)
    python3 tests/bench/order.py target/release/weft A B … > link.ld

The binary is one linked without link.ld or with it, as optimised as the one to be. Names stand for their functions whatever
the compiler and the versions of dependencies: their hashes are left out, and where most of a module runs, the module is named
and not its functions. A name that is no more costs nothing; after large changes, make it again."""
import collections, re, subprocess, sys

binary, profiles = sys.argv[1], sys.argv[2:]
MOST = 0.6  # of a module's bytes

ran = set()
for profile in profiles:
    for line in open(profile):
        named = re.match(r"c?fn=\(\d+\) (\S+)", line)
        if named:
            ran.add(named.group(1).split("'")[0])

size = {}
for line in subprocess.run(["nm", "-S", binary], check=True, capture_output=True, text=True).stdout.splitlines():
    words = line.split()
    if len(words) == 4 and words[2] in "tTwW":
        size[words[3]] = int(words[1], 16)


def path(symbol):
    """A Rust symbol's path without its hash; of others only the name."""
    if not symbol.startswith("_ZN"):
        # AWS-LC carries its version in its names.
        return [re.sub(r"^aws_lc_[0-9_]+_", "aws_lc_*_", symbol)]
    parts, at = [], 3
    while (length := re.match(r"\d+", symbol[at:])) is not None:
        end = at + len(length.group()) + int(length.group())
        parts.append(symbol[at:end])
        at = end
    return parts[:-1] if parts and re.fullmatch(r"17h[0-9a-f]{16}", parts[-1]) else parts


inside, running = collections.Counter(), collections.Counter()
for symbol, bytes_ in size.items():
    parts = path(symbol)
    for depth in range(1, len(parts) + 1):
        inside[tuple(parts[:depth])] += bytes_
        running[tuple(parts[:depth])] += bytes_ * (symbol in ran)

patterns = set()
for symbol in ran & set(size):
    parts = path(symbol)
    depth = next((d for d in range(1, len(parts)) if running[tuple(parts[:d])] >= MOST * inside[tuple(parts[:d])]), len(parts))
    if not symbol.startswith("_ZN"):
        patterns.add(parts[0])
    else:
        patterns.add("_ZN" + "".join(parts[:depth]) + ("*" if depth < len(parts) else "17h*"))

print("/* Made by tests/bench/order.py: what a proxy runs, side by side. */")
print("SECTIONS {\n  .text.weft : {")
for pattern in sorted(patterns):
    print(f"    *(.text.{pattern})")
print("  }\n}\nINSERT BEFORE .text;")
