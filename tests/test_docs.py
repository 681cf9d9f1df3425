"""Docstrings, links and sizes: what a reader meets before the code itself."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = sorted(
    [*(ROOT / "ldm").rglob("*.py"), *(ROOT / "scripts").glob("*.py"), ROOT / "main.py"]
)
PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").rglob("*.md")])
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)|!\[[^\]]*\]\(([^)\s]+)\)")
CODE = re.compile(r"```.*?```|`[^`\n]*`", flags=re.DOTALL)

MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 50


def short(path):
    return str(path.relative_to(ROOT))


def definitions(tree, is_public=True):
    """Classes and functions of a module and of its classes, with their qualified names."""
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if is_public and node.name.startswith("_"):
                continue
            yield node.name, node
            if isinstance(node, ast.ClassDef):
                for name, inner in definitions(node, is_public):
                    yield f"{node.name}.{name}", inner


def is_overload_or_empty(node):
    """Whether a function has nothing to describe: an overload, or `def f() -> None: ...`."""
    decorators = {ast.unparse(each) for each in node.decorator_list}
    return "overload" in decorators


def undocumented(path):
    tree = ast.parse(path.read_text())
    found = [] if ast.get_docstring(tree) else ["the module"]
    for name, node in definitions(tree):
        if not ast.get_docstring(node) and not is_overload_or_empty(node):
            found.append(name)
    return found


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_everything_public_has_a_docstring(path):
    # `forward` of a private class and `__init__` are described by their class
    assert undocumented(path) == []


@pytest.mark.parametrize("path", SOURCES, ids=short)
def test_files_and_functions_stay_short(path):
    text = path.read_text()
    assert len(text.splitlines()) <= MAX_FILE_LINES
    functions = [
        node
        for node in ast.walk(ast.parse(text))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    long = {
        node.name: length
        for node in functions
        if (length := node.end_lineno - node.lineno + 1) > MAX_FUNCTION_LINES
        # the constructors of Lightning's classes and of published ones are mostly arguments
        and not is_mostly_signature(node)
    }
    assert long == {}


def is_mostly_signature(node):
    """Whether a function's arguments and docstring are what makes it long."""
    body = [each for each in node.body if not is_docstring(each)]
    return bool(body) and node.end_lineno - body[0].lineno + 1 <= MAX_FUNCTION_LINES


def is_docstring(node):
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def anchors(page):
    """The anchors of a page's headings, as GitHub makes them."""
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    headings = re.findall(r"^#+ +(.+?) *$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_links_between_pages_lead_somewhere(page):
    broken = []
    for match in LINK.finditer(CODE.sub("", page.read_text())):
        link = match.group(1) or match.group(2)
        if link.startswith(("http://", "https://", "mailto:")):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


@pytest.mark.parametrize("page", PAGES, ids=short)
def test_files_and_classes_that_a_page_names_exist(page):
    """Code spans that look like a path of this repository, or like a name in `ldm`."""
    unknown = []
    for span in re.findall(r"`([^`\n]+)`", page.read_text()):
        if re.fullmatch(r"(ldm|scripts|configs|docs|tests)/[\w./-]*", span):
            if not (ROOT / span).exists():
                unknown.append(span)
        elif re.fullmatch(r"ldm(\.\w+)+", span) and not is_defined(span):
            unknown.append(span)
    assert unknown == []


def is_defined(dotted):
    """Whether a dotted name is a module here, or a name in one, by the source alone."""
    parts = dotted.split(".")
    for count in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:count])
        source = base / "__init__.py" if base.is_dir() else base.with_suffix(".py")
        if source.is_file():
            rest = parts[count:]
            return not rest or re.search(rf"\b{rest[0]}\b", source.read_text()) is not None
    return False
