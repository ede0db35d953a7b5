"""What the tests of the documentation share: its commands."""

import re
import shlex

import pytest

CODE = re.compile(r"^```bash\n(?P<block>.*?)^```$|`(?P<inline>[^`\n]+)`", re.MULTILINE | re.DOTALL)
VARIABLE = re.compile(r'^(?P<name>[A-Z]+)="(?P<value>.*)"$', re.MULTILINE)


@pytest.fixture(scope="session")
def commands():
    """Returns a function that yields each command of a page that starts a module of ours, from its name on."""

    def read(page, blocks_alone=False):
        for code in CODE.finditer(page.read_text()):
            if blocks_alone and not code["block"]:
                continue
            text = (code["block"] or code["inline"]).replace("\\\n", " ")
            for variable in VARIABLE.finditer(text):
                text = text.replace(f"${variable['name']}", variable["value"])
            for line in text.splitlines():
                for part in re.split(r"\bpython -m (?=experiments\.|launch\.)", line)[1:]:
                    words = shlex.split(part, comments=True)
                    # Not what stands for a word: --config=…, --config=experiments/configs/RECIPE, --workdir=DIRECTORY.
                    if not any(re.search(r"…|--config=.*[A-Z]{3,}", word) for word in words):
                        yield words

    return read
