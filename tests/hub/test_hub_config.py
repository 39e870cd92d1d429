from __future__ import annotations

from pathlib import Path

import pytest

from federation.connection.carrier import Carrier, Tls
from ffm_common.errors import ConfigError, ConfigInvalid
from hub import config

LEAST = """
federation = "town"
base = "../base"
[public]
train = "public.jsonl"
evaluation = "/data/test.jsonl"
"""


def load(folder: Path, text: str) -> config.Located:
    path = folder / "hub.toml"
    path.write_text(text)
    return config.load(path)


def test_the_least_configuration_has_every_default(tmp_path: Path) -> None:
    found = load(tmp_path, LEAST).config
    assert found.versions.buffer >= 1
    assert found.broker.kind == "auto"
    assert found.adapter.kind == "lora"


def test_paths_are_relative_to_the_file_and_absolute_ones_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hub.toml").write_text(LEAST)
    monkeypatch.chdir(tmp_path)
    found = config.load(Path("hub.toml"))
    assert found.train == tmp_path / "public.jsonl"
    assert found.evaluation == Path("/data/test.jsonl")
    assert found.base == tmp_path / ".." / "base"
    assert found.folder == tmp_path / "state"


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('codec_up = "jpeg"', "codec_up"),
        ('codec_keyframe = ""', "codec_keyframe"),
        ('codec_delta = "ecsq9"', "codec_delta"),
        ("keyframe_every = 0", "keyframe_every"),
        ("keyframe_every = 65", "keyframe_every"),
        ("seed = -1", "seed"),
        ('federation = "Town"', "federation"),
        ('federation = "a/b"', "federation"),
        ('federation = "town\\n"', "federation"),
        ('federation = ""', "federation"),
        ("[versions]\nbuffer = 0", "versions.buffer"),
        ("[versions]\nmax_staleness = 20", "versions.max_staleness"),
        ("[versions]\nbuffer = 4\nselect = 3", "versions"),
        ("[versions]\ndeadline_s = inf", "versions.deadline_s"),
        ("[versions]\ndeadline_s = nan", "versions.deadline_s"),
        ("[versions]\ngrace_s = inf", "versions.grace_s"),
        ("[versions]\ngrace_s = -1", "versions.grace_s"),
        ("[broker]\nport = 65536", "broker.port"),
        ('[broker]\nkind = "rabbit"', "broker.kind"),
        ("[adapter]\nrank = 0", "adapter.rank"),
        ("[defence]\nattackers = 0.5", "defence.attackers"),
        ('[defence]\nrule = "best"', "defence.rule"),
        ("[training]\nlearning_rate = nan", "training.learning_rate"),
        ("[training]\nlocal_steps = 0", "training.local_steps"),
        ("[training]\nbatch_size = 0", "training.batch_size"),
    ],
)
def test_a_value_out_of_range_is_refused_with_its_key(
    tmp_path: Path, line: str, named: str
) -> None:
    key = line.partition(" = ")[0]
    plain = "\n".join(row for row in LEAST.splitlines() if not row.startswith(key))
    text = f"{plain}\n{line}\n" if line.startswith("[") else f"{line}\n{plain}\n"
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, text)
    assert f"hub.toml: {named}: " in caught.value.message


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('policy = "sometimes"', "policy: 'sometimes' is no policy, it must be adaptive"),
        ('policy = "fixed:2"', "policy"),
        ("steps = 0", "steps"),
        ("warmup_steps = -1", "warmup_steps"),
        ("replay = 1.5", "replay"),
        ("rate_scale = 0.5", "unknown key public.rate_scale"),
    ],
)
def test_what_is_wrong_about_public_data_is_named(tmp_path: Path, line: str, named: str) -> None:
    with pytest.raises(ConfigInvalid) as caught:
        load(tmp_path, f"{LEAST}{line}\n")
    assert named in caught.value.message
    assert "hub.toml: " in caught.value.message


def test_a_url_is_of_an_external_broker(tmp_path: Path) -> None:
    found = load(tmp_path, f'{LEAST}[broker]\nurl = "wss://broker.example/ws"\n')
    assert found.config.broker.choice == "external"
    assert (found.broker.host, found.broker.port) == ("broker.example", 443)
    assert found.broker.carrier == Carrier(tls=Tls(), path="/ws")


@pytest.mark.parametrize(
    ("lines", "port"),
    [
        ('trust = "enrolled"\n', 8883),
        ('trust = "enrolled"\n[broker]\nport = 9000\n', 9000),
        ('trust = "enrolled"\n[broker]\nport = 0\n', 0),
        ('trust = "enrolled"\n[broker]\nkind = "external"\n', 1883),
        ('trust = "enrolled"\n[broker]\nurl = "mqtts://broker:9000"\n', 9000),
        ('trust = "open"\n', 1883),
        ('[broker]\nhost = "192.0.2.1"\n', 8883),
        ("", 1883),
    ],
)
def test_its_own_broker_for_members_is_where_tls_is_looked_for(
    tmp_path: Path, lines: str, port: int
) -> None:
    head, tail = LEAST.split("[", 1)
    top, _, table = lines.partition("[")
    text = f"{head}{top}[{tail}" + (f"[{table}" if table else "")
    assert load(tmp_path, text).broker.port == port


@pytest.mark.parametrize(
    "lines",
    [
        'kind = "mosquitto"\nurl = "mqtt://broker.example"',
        'url = "broker.example"',
        'url = "mqtts://broker.example"\nca = "none.pem"',
    ],
)
def test_a_url_that_cannot_be_used_is_refused(tmp_path: Path, lines: str) -> None:
    with pytest.raises(ConfigInvalid, match=r"hub\.toml: broker\."):
        load(tmp_path, f"{LEAST}[broker]\n{lines}\n")


@pytest.mark.parametrize("left_out", ["federation", "base", "train", "evaluation"])
def test_a_key_that_must_be_there_is_named(tmp_path: Path, left_out: str) -> None:
    text = "\n".join(row for row in LEAST.splitlines() if not row.startswith(left_out))
    with pytest.raises(ConfigError, match=left_out):
        load(tmp_path, text)
