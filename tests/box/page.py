#!/usr/bin/env python3
"""Holds a page of the guide against what really happens.

  page.py run PAGE [--replace OLD=NEW]… [--user COMMAND] [--show] -- SHELL…

SHELL… is started once and gets every command of the page's ```console blocks that stands behind `# ` (and, on the
lines after it, `> `), in order. A command that fails ends it. Lines without a prompt are output: each must be a line of
what the command really said, numbers, ids and times aside; `…` stands for lines that are left out. What stands behind
`$ ` is done on a user's machine: COMMAND is run in its place, in the same shell. --show also prints what was said.

  page.py said PAGE SECTION [--replace OLD=NEW]… < WHAT WAS SAID

Each paragraph of the ```text blocks of a section must be in what was said, wherever its lines break.
"""

import argparse
import re
import subprocess
import sys


def steps(text):
    """The commands of a page with the output that it shows: [prompt, command, lines]."""
    found, inside = [], False
    for line in text.splitlines():
        if line.startswith("```"):
            inside = line == "```console"
        elif inside and line.startswith(("# ", "$ ")):
            found.append([line[0], line[2:], []])
        elif inside and line.startswith("> ") and found and not found[-1][2]:
            found[-1][1] += "\n" + line[2:]
        elif inside and found:
            found[-1][2].append(line)
    return found


def messages(text, section):
    """The paragraphs of the text blocks of a section."""
    here, inside, found = False, False, [[]]
    for line in text.splitlines():
        if line.startswith("#") and not inside:
            here = line.lstrip("# ") == section
        elif line.startswith("```"):
            inside = here and line == "```text"
            found.append([])
        elif inside and line.strip():
            found[-1].append(line)
        elif inside:
            found.append([])
    return [" ".join(lines) for lines in found if lines]


def shape(line):
    """What of a line is the same tomorrow: no numbers, hex, times, nor how wide a column is."""
    line = re.sub(r"\b[0-9a-f]{8,}\b", "N", line)
    line = re.sub(r"\d+", "N", line)
    # Whose journal it is, and from which month.
    line = re.sub(r"^[A-Z][a-z]{2} +N N:N:N \S+ ", "", line)
    return re.sub(r"\s+", " ", line).strip()


class Shell:
    """One shell, so that variables and the directory stay from command to command."""

    MARK = "--- done with"

    def __init__(self, command):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                        stderr=subprocess.STDOUT, text=True)

    def run(self, command):
        """The output and the exit code. A command has no input."""
        self.process.stdin.write(f"{{\n{command}\n}} </dev/null\nprintf '\\n{self.MARK} %s\\n' $?\n")
        self.process.stdin.flush()
        said = []
        for line in self.process.stdout:
            if line.startswith(self.MARK):
                # The newline before the mark is ours.
                return "".join(said)[:-1].splitlines(), int(line.split()[-1])
            said.append(line)
        sys.exit("the shell ended:\n" + "".join(said))


def run(page, text, options, replaced):
    shell, compared, all_steps = Shell(options.shell), 0, steps(text)
    for prompt, command, expected in all_steps:
        said, status = shell.run(replaced(command) if prompt == "#" else options.user)
        if options.show or status:
            print("\n".join([f"{prompt} {command}", *said]))
        if status:
            sys.exit(f"{page}: `{command}` ended with {status}")
        real = {shape(line) for line in said}
        for line in expected:
            if line.strip() in ("", "…"):
                continue
            if shape(replaced(line)) not in real:
                sys.exit(f"{page} shows below `{command}` what was not said: {line}\nbut:\n" + "\n".join(said))
            compared += 1
    if not all_steps:
        sys.exit(f"{page} has no commands")
    print(f"{len(all_steps)} commands, {compared} lines compared")


def main():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    runs, said = verbs.add_parser("run"), verbs.add_parser("said")
    for verb in (runs, said):
        verb.add_argument("page")
        verb.add_argument("--replace", action="append", default=[])
    said.add_argument("section")
    runs.add_argument("--user", default="true")
    runs.add_argument("--show", action="store_true")
    runs.add_argument("shell", nargs="+")
    options = parser.parse_args()

    def replaced(text):
        for one in options.replace:
            text = text.replace(*one.split("=", 1))
        return text

    with open(options.page, encoding="utf-8") as page:
        text = page.read()
    if options.verb == "run":
        return run(options.page, text, options, replaced)
    heard, expected = shape(sys.stdin.read()), messages(text, options.section)
    for message in expected:
        if shape(replaced(message)) not in heard:
            sys.exit(f"{options.page}: {options.section}: nobody said «{message}», but:\n{heard}")
    if not expected:
        sys.exit(f"{options.page}: {options.section} names no message")
    print(f"{len(expected)} messages heard")


main()
