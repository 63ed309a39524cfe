"""``world``, ``model`` and ``cache``: commands that look."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import lmdb

from tests.cli.cli_harness import NINESTEP, ROOT, last_json, succeed


def test_world_show_lists_npcs_and_places() -> None:
    """The names that scripts rely on."""
    summary = last_json(succeed("world", "show", NINESTEP, "--json").stdout)
    assert "Odile Farrant" in summary["npcs"]
    assert set(summary["places"]) == {"the lock house", "the Fifth Basin", "the gate shop"}


def test_world_show_tells_why_an_npc_knows() -> None:
    """By name, by home, or because everybody does; what it does not know is not there."""
    wick = last_json(succeed("world", "show", NINESTEP, "--npc", "Wick", "--json").stdout)
    because = {block["entity"]: block["because"] for block in wick["blocks"]}
    assert because["lore/mules"] == "the audience names place:basin, its home"
    assert because["lore/stair"] == "everyone knows it"
    assert because["quest/ice"] == "stage 'melting', the audience names wick"
    assert "lore/night_water" not in because
    assert because["character/wick"] == ""


def test_world_check_of_a_good_world() -> None:
    """Nothing to mend, exit code 0."""
    result = succeed("world", "check", NINESTEP, "--json")
    assert last_json(result.stdout)["problems"] == []


def test_model_pull_and_info(talker_folder: Path, tmp_path: Path) -> None:
    """A folder is there already; info agrees with its config."""
    options = ("--model", talker_folder, "--cache-dir", tmp_path, "--json")
    pulled = last_json(succeed("model", "pull", *options).stdout)
    assert pulled["was_present"] is True
    shown = last_json(succeed("model", "info", *options, "--dtype", "float32").stdout)
    assert shown["fingerprint"] == pulled["fingerprint"]
    assert shown["architecture"] == "LlamaForCausalLM"
    assert shown["dtype"] == "float32"
    assert shown["max_position_embeddings"] == 8192
    assert shown["num_bytes"] // 4 - shown["num_parameters"] in range(4096)  # the file's header
    assert shown["roles"] == ["system", "user", "assistant"]
    assert shown["stop_tokens"] == ["<|im_end|>"]


def test_cache_of_nothing(tmp_path: Path) -> None:
    """Looking makes no folders."""
    folder = tmp_path / "data"
    assert last_json(succeed("cache", "stats", "--data-dir", folder, "--json").stdout)["num_blocks"] == 0
    assert last_json(succeed("cache", "verify", "--data-dir", folder, "--json").stdout)["num_blocks"] == 0
    assert last_json(succeed("cache", "prune", "--data-dir", folder, "--json").stdout)["num_deleted"] == 0
    assert not folder.exists()


def test_prune_spares_the_blocks_of_saves(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """All blocks but those of the save go; with --no-keep-saves, those too."""
    succeed("play", NINESTEP, "--npc", "wick", *tiny, stdin="Hello!\n/save one\nAnd more?\n")
    data = ("--data-dir", tmp_path / "data", "--json")
    before = last_json(succeed("cache", "stats", *data).stdout)
    assert before["num_saves"] == 1
    assert 0 < before["num_kept"] < before["num_blocks"]
    pruned = last_json(succeed("cache", "prune", *data).stdout)
    assert pruned["num_blocks"] == before["num_kept"]
    assert last_json(succeed("cache", "prune", "--max-bytes", "1T", *data).stdout)["num_deleted"] == 0
    assert last_json(succeed("cache", "prune", "--no-keep-saves", *data).stdout)["num_blocks"] == 0


def test_verify_finds_damage(tiny: tuple[str, ...], tmp_path: Path) -> None:
    """A flipped byte is reported and deleted, and the next talk is as good as ever."""
    arguments = ("play", NINESTEP, "--npc", "wick", "--say", "Hello!", "--json", *tiny)
    whole = last_json(succeed(*arguments).stdout)["replies"][0]
    with lmdb.open(str(tmp_path / "data" / "blocks"), max_dbs=2, map_size=16 << 30) as environment:
        values = environment.open_db(b"values")
        with environment.begin(values, write=True) as transaction:
            cursor = transaction.cursor()
            assert cursor.first()
            key, value = cursor.item()
            transaction.put(key, value[:-1] + bytes([value[-1] ^ 1]))
    found = last_json(succeed("cache", "verify", "--data-dir", tmp_path / "data", "--json").stdout)
    assert found["num_damaged"] == 1
    assert found["damaged"] == [{"block_id": key.hex(), "reason": "checksum mismatch"}]
    assert last_json(succeed(*arguments).stdout)["replies"][0]["speech"] == whole["speech"]


def test_version_and_help() -> None:
    """Without a command, the commands are listed."""
    assert succeed("--version").stdout.startswith("npc-engine ")
    listed = succeed().stdout
    assert all(name in listed for name in ("play", "serve", "model", "world", "cache"))


def test_help_does_not_wait_for_torch() -> None:
    """No command's module imports the engine before it runs.

    The package is entered without its ``__init__``, which is not the command line's to keep light.
    """
    program = (
        "import sys, types\n"
        "package = types.ModuleType('npc_engine')\n"
        "package.__path__ = ['npc_engine']\n"
        "sys.modules['npc_engine'] = package\n"
        "import npc_engine.cli.main\n"
        "print([name for name in ('torch', 'pydantic', 'websockets', 'yaml') if name in sys.modules])\n"
    )
    command = [sys.executable, "-c", program]
    process = subprocess.run(command, cwd=ROOT, capture_output=True, encoding="utf-8", check=True)
    assert process.stdout == "[]\n"
