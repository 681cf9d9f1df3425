"""Reading, merging and overriding of configuration files, and the faults a user can make."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from ldm.config import ConfigError, load


@pytest.fixture
def write(tmp_path):
    def write_file(name, text):
        path = tmp_path / name
        path.write_text(text)
        return path

    return write_file


def test_files_are_merged_left_to_right_key_by_key(write):
    first = write("a.yaml", "model:\n  x: 1\n  y: 2\n  z: [1, 2, 3]\n")
    second = write("b.yaml", "model:\n  y: 5\n  z: [4]\nlightning: {}\n")
    assert load([first, second]) == {"model": {"x": 1, "y": 5, "z": [4]}, "lightning": {}}
    assert load([second, first]).model == {"x": 1, "y": 2, "z": [1, 2, 3]}


def test_an_empty_file_changes_nothing(write):
    assert load([write("a.yaml", ""), write("b.yaml", "model: {x: 1}")]) == {"model": {"x": 1}}


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1", 1),
        ("1e-4", 1e-4),
        ("'1e-4'", "1e-4"),
        ("true", True),
        ("null", None),
        ("[1, 2]", [1, 2]),
        ("{a: 1}", {"a": 1}),
        ("runs/a=b", "runs/a=b"),
        ("0,", "0,"),
        ("", None),
    ],
)
def test_an_override_is_typed_as_yaml(text, value):
    assert load([], [f"a.b={text}"]) == {"a": {"b": value}}


def test_overrides_come_last_and_in_order(write):
    path = write("a.yaml", "a: {b: 1, c: 2, d: [{e: 1}, {e: 2}]}")
    config = load([path], ["a.b=7", "a.d.1.e=9", "a.new.key=x", "a.b=8"])
    assert config.a == {"b": 8, "c": 2, "d": [{"e": 1}, {"e": 9}], "new": {"key": "x"}}


def test_an_override_with_a_mapping_merges_into_it(write):
    path = write("a.yaml", "a: {b: 1, c: 2}")
    assert load([path], ["a={b: 5}"]).a == {"b": 5, "c": 2}


keys = st.lists(st.from_regex(r"[a-z_]{1,8}", fullmatch=True), min_size=1, max_size=4)
scalars = st.one_of(st.integers(-(10**6), 10**6), st.booleans(), st.none())


@settings(database=None)
@given(keys, scalars)
def test_an_override_sets_exactly_the_key_it_names(names, value):
    written = OmegaConf.to_yaml({"v": value}).removeprefix("v: ").strip()
    config = load([], [".".join(names) + "=" + written])
    for name in names:
        assert list(config) == [name]
        config = config[name]
    assert config == value


@pytest.mark.parametrize("override", ["a.b", "=3", "a..b=3", ".a=3", "a.=3", " =1", ""])
def test_a_malformed_override_is_named_with_its_form(override):
    with pytest.raises(ConfigError, match=r"expected a\.b\.c=value") as caught:
        load([], [override])
    assert repr(override) in str(caught.value)


def test_an_override_that_is_not_yaml_is_named():
    with pytest.raises(ConfigError, match=r"override 'a=\[1,': '\[1,' is not valid YAML"):
        load([], ["a=[1,"])


@pytest.mark.parametrize("override", ["a.5.x=1", "a.first=1"])
def test_an_override_outside_a_list_says_what_could_not_be_set(write, override):
    path = write("a.yaml", "a: [{x: 1}]")
    with pytest.raises(ConfigError, match="cannot set"):
        load([path], [override])


def test_a_missing_file_is_named_with_the_nearest_existing_one(write):
    path = write("autoencoder_kl.yaml", "")
    with pytest.raises(ConfigError) as caught:
        load([path.with_name("autoencoder_lk.yaml")])
    assert str(caught.value).startswith(str(path.with_name("autoencoder_lk.yaml")))
    assert f"did you mean {path}?" in str(caught.value)


def test_a_missing_file_in_a_misspelt_directory_finds_both(tmp_path):
    (tmp_path / "configs" / "tiny").mkdir(parents=True)
    (tmp_path / "configs" / "tiny" / "ldm.yaml").write_text("")
    with pytest.raises(ConfigError, match=r"did you mean .*/configs/tiny/ldm\.yaml\?"):
        load([tmp_path / "confiigs" / "tini" / "ldm.yml"])


def test_a_missing_file_with_nothing_like_it_says_only_that(tmp_path):
    with pytest.raises(ConfigError, match=r"x\.yaml: no such file$"):
        load([tmp_path / "x.yaml"])


def test_a_directory_is_refused_with_the_files_it_holds(write, tmp_path):
    write("ldm.yaml", "")
    with pytest.raises(ConfigError, match=r"is a directory.*ldm\.yaml"):
        load([tmp_path])


@pytest.mark.parametrize(
    ("text", "line"), [("a: 1\nb: [1, 2\nc: 3\n", 3), ("a: 1\na: 2\n", 2), ("a:\n\tb: 1\n", 2)]
)
def test_a_syntax_error_is_reported_with_its_line(write, text, line):
    with pytest.raises(ConfigError, match=rf"bad\.yaml: line {line}: not valid YAML: .+"):
        load([write("bad.yaml", text)])


def test_a_file_that_is_no_text_is_refused(tmp_path):
    path = tmp_path / "model.yaml"
    path.write_bytes(bytes(range(256)))
    with pytest.raises(ConfigError, match="not a YAML file"):
        load([path])


def test_a_list_at_the_top_is_refused(write):
    with pytest.raises(ConfigError, match="expected a mapping"):
        load([write("list.yaml", "- 1\n- 2\n")])


def test_a_lone_number_is_refused(write):
    with pytest.raises(ConfigError, match=r"number\.yaml: .*int; expected a mapping"):
        load([write("number.yaml", "3\n")])


def test_an_interpolation_that_is_none_is_reported_with_its_key(write):
    with pytest.raises(ConfigError, match=r"bad\.yaml: a\.b: no viable alternative"):
        load([write("bad.yaml", "a:\n  b: ${c\n")])


@pytest.mark.parametrize("texts", [("m: {a: [1]}", "m: {a: {b: 1}}"), ("m: {a: {}}", "m: {a: []}")])
def test_a_list_over_a_mapping_is_reported_with_file_and_key(write, texts):
    first, second = write("first.yaml", texts[0]), write("second.yaml", texts[1])
    with pytest.raises(ConfigError, match=r"second\.yaml: m\.a: a list cannot be merged"):
        load([first, second])
