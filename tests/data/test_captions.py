import json

import pytest

from ldm.config import ConfigError
from ldm.data.captions import Captions, mentions_a_side


def lines(**rows):
    return "".join(json.dumps({"file_name": f"{k}.png", "text": v}) + "\n" for k, v in rows.items())


def test_text_beside_an_image_is_its_caption(tmp_path):
    (tmp_path / "a.txt").write_text("  a dog \n")
    captions = Captions.find(tmp_path, ["a.png"], {"a"})
    assert captions.of("a.png") == ["a dog"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252"])
def test_text_in_a_usual_encoding_is_read(tmp_path, encoding):
    (tmp_path / "a.txt").write_text("ein gr\u00fcner W\u00fcrfel", encoding=encoding)
    assert Captions.find(tmp_path, ["a.png"], {"a"}).of("a.png") == ["ein gr\u00fcner W\u00fcrfel"]


def test_guessed_encoding_is_said_once(tmp_path, caplog_ldm):
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("gr\u00fcn", encoding="cp1252")
    captions = Captions.find(tmp_path, ["a.png", "b.png"], {"a", "b"})
    assert captions.of("a.png") == captions.of("b.png") == ["gr\u00fcn"]
    assert caplog_ldm.text.count("is not UTF-8") == 1


def test_lines_of_a_text_are_alternatives(tmp_path):
    (tmp_path / "a.txt").write_text("a dog\n\na brown dog\n")
    assert Captions.find(tmp_path, ["a.png"], {"a"}).of("a.png") == ["a dog", "a brown dog"]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metadata.jsonl", lines(a="a dog", b="a cat")),
        ("labels.jsonl", "\n" + lines(a="a dog", b="a cat")),
        ("metadata.jsonl", '{"image": "./a.png", "caption": "a dog"}\n' + lines(b="a cat")),
        ("metadata.csv", 'file_name,text\na.png,"a dog"\nb.png,a cat\n'),
        ("metadata.csv", "\ufefftext,file_name,more\na dog,a.png,1\na cat,b.png,2\n"),
    ],
)
def test_table_gives_the_captions(tmp_path, name, content):
    (tmp_path / name).write_text(content, encoding="utf-8")
    captions = Captions.find(tmp_path, ["a.png", "b.png"], set())
    assert [captions.of("a.png"), captions.of("b.png")] == [["a dog"], ["a cat"]]


def test_table_goes_before_the_text_beside(tmp_path):
    (tmp_path / "a.txt").write_text("from the text")
    (tmp_path / "b.txt").write_text("from the text")
    (tmp_path / "metadata.jsonl").write_text(lines(a="from the table"))
    captions = Captions.find(tmp_path, ["a.png", "b.png"], {"a", "b"})
    assert captions.of("a.png") == ["from the table"]
    assert captions.of("b.png") == ["from the text"]


def test_there_are_none_when_no_image_has_one(tmp_path):
    assert Captions.find(tmp_path, ["a.png"], {"readme"}) is None


def test_images_without_a_caption_are_counted_and_have_an_empty_one(tmp_path, caplog_ldm):
    (tmp_path / "a.txt").write_text("a dog")
    captions = Captions.find(tmp_path, ["a.png", "b.png", "c.png"], {"a"})
    assert captions.of("b.png") == [""]
    assert "2 of 3 images have no caption" in caplog_ldm.text


def test_rows_about_no_image_are_counted(tmp_path, caplog_ldm):
    (tmp_path / "metadata.jsonl").write_text(lines(a="a dog", z="a cat"))
    Captions.find(tmp_path, ["a.png"], set())
    assert "1 of 2 rows name no image" in caplog_ldm.text


@pytest.mark.parametrize(
    ("rows", "names"),
    [
        (list("abcz"), list("ab")),  # images are missing, all others have a caption
        (list("abyz"), list("abcd")),  # as many match as do not
        (list("ab"), list("abcdef")),  # captions are missing
    ],
)
def test_a_table_of_more_or_fewer_images_is_read(tmp_path, rows, names):
    (tmp_path / "metadata.jsonl").write_text(lines(**dict.fromkeys(rows, "a dog")))
    captions = Captions.find(tmp_path, [f"{name}.png" for name in names], set())
    assert captions.of("a.png") == ["a dog"]


@pytest.mark.parametrize(
    ("content", "names", "expected"),
    [
        (lines(y="a", z="b"), ["a.png"], "2 of 2 names in it are of no image below"),
        (lines(y="a", z="b"), ["a.png"], "it has, e.g., 'y.png', the folder 'a.png'"),
        (lines(a="a", x="b", y="c"), ["a.png", "b.png", "c.png"], "2 of 3 names in it are of no"),
        (lines(a="a"), ["images/a.png"], "has, e.g., 'a.png', the folder 'images/a.png'"),
        ("", ["a.png"], "has no rows; expected file_name and text"),
    ],
)
def test_a_table_of_other_images_is_one_error(tmp_path, content, names, expected):
    (tmp_path / "metadata.jsonl").write_text(content)
    with pytest.raises(ConfigError) as error:
        Captions.find(tmp_path, names, set())
    assert f"{tmp_path}/metadata.jsonl: " in str(error.value)
    assert expected in str(error.value)
    assert "captions: false" in str(error.value)


@pytest.mark.parametrize(
    ("names", "texts", "expected"),
    [
        (["images/a.png"], {"texts/a"}, "e.g., texts/a.txt, and the image images/a.png; expected"),
        (["images/a.png"], {"texts/a"}, "expected images/a.txt for its caption"),
        (["a.png", "b.png"], {"a_1", "b_1", "c_1"}, "none of its 3 .txt files lies beside"),
    ],
)
def test_texts_that_lie_elsewhere_are_one_error(tmp_path, names, texts, expected):
    with pytest.raises(ConfigError) as error:
        Captions.find(tmp_path, names, texts)
    assert expected in str(error.value)


@pytest.mark.parametrize("texts", [{"readme", "license"}, {"train", "val", "test"}])
def test_a_few_other_texts_are_no_captions(tmp_path, texts):
    names = [f"{number}.png" for number in range(len(texts) * 3)]
    assert Captions.find(tmp_path, names, texts) is None


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("metadata.jsonl", lines(a="a dog") + "{]\n", "line 2: not JSON"),
        ("metadata.jsonl", "[1]\n", "line 1: expected an object"),
        ("metadata.jsonl", '{"file_name": "a.png"}\n', "line 1: has file_name; expected"),
        ("metadata.jsonl", '{"file_name": "a.png", "text": 5}\n', "line 1: 5; expected a text"),
        ("metadata.csv", "name;text\na.png;a dog\n", "line 2: has name;text; expected"),
        ("metadata.csv", "file_name,text\na.png\n", "line 2"),
    ],
)
def test_table_that_cannot_be_understood_is_named_with_its_line(tmp_path, name, content, named):
    (tmp_path / name).write_text(content)
    with pytest.raises(ConfigError, match=named):
        Captions.find(tmp_path, ["a.png"], set())


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("file_name,text\na.png,caf\u00e9\n".encode("latin-1"), "metadata.csv: is not UTF-8"),
        (b"file_name,text\na.png," + b"a" * 200_000, "line 2: not CSV: field larger"),
    ],
)
def test_table_that_is_no_text_or_no_table_is_named(tmp_path, content, named):
    (tmp_path / "metadata.csv").write_bytes(content)
    with pytest.raises(ConfigError, match=named):
        Captions.find(tmp_path, ["a.png"], set())


def test_two_tables_are_an_error_that_names_both(tmp_path):
    for name in ("x.jsonl", "y.jsonl"):
        (tmp_path / name).write_text(lines(a="a dog"))
    with pytest.raises(ConfigError, match=r"x\.jsonl and y\.jsonl"):
        Captions.find(tmp_path, ["a.png"], set())


@pytest.mark.parametrize(
    ("text", "is_sided"),
    [
        ("a dog on the left", True),
        ("Left of a house", True),
        ("the rightmost tree", True),
        ("a bright cleft", False),
        ("", False),
    ],
)
def test_sides_are_found_as_words(text, is_sided):
    assert mentions_a_side(text) is is_sided
