"""Fabric files: what a good one means, and that a bad one is refused with file, line or key, and the remedy."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ringway.broker.config.checks import parse_config, read_config
from ringway.broker.config.tables import EndName
from ringway.broker.config.text import TEXT_SIZE, FabricCause, FabricError
from ringway.control.kinds import Tap
from ringway.control.rules import Timeouts

GOOD = """\
[limits]
link_bytes = "1 GiB"

[vm.client.port.net]
kind = "tap"
interface = "rway0"
mtu = 1500
address = ["10.77.0.1/24"]

[vm.firewall.port.inside]
kind = "local"
[vm.firewall.port.outside]
kind = "local"

[vm.firewall.stack]
forward = [["inside", "outside"]]
default = "allow"

[[vm.firewall.stack.rule]]
name = "no-telnet"
action = "deny"
from = "inside"
protocol = "tcp"
destination_port = 23

[link.client-firewall]
ends = ["client.net", "firewall.inside"]
queues = 2
"""


def refused(text: str) -> FabricError:
    with pytest.raises(FabricError) as caught:
        parse_config(text, "fabric.toml")
    return caught.value


def refused_after(old: str, new: str) -> FabricError:
    assert old in GOOD
    return refused(GOOD.replace(old, new, 1))


def line_of(text: str, source: str = GOOD) -> str:
    return f"fabric.toml:{source[: source.index(text)].count(chr(10)) + 1}"


def test_a_good_file_becomes_a_fabric() -> None:
    config = parse_config(GOOD, "fabric.toml")
    link = config.links["client-firewall"]
    assert link.ends == (EndName("client", "net"), EndName("firewall", "inside"))
    assert (link.geometry.queues, link.geometry.slot_count, link.huge_pages) == (2, 1024, False)
    port = config.port(link.ends[0])
    assert (port.kind, port.settings) == ("tap", Tap(interface="rway0", address=("10.77.0.1/24",)))
    stack = config.vms["firewall"].stack
    assert stack is not None
    assert stack.forward == [("inside", "outside")]
    assert stack.rules[0].destination_port == (23, 23)


def test_an_empty_file_is_a_fabric_without_links() -> None:
    config = parse_config("", "fabric.toml")
    assert (config.vms, config.links) == ({}, {})


def test_a_tap_port_has_an_interface_named_after_it_unless_told() -> None:
    config = parse_config('[vm.a.port.net]\nkind = "tap"\n', "fabric.toml")
    assert config.vms["a"].ports["net"].settings == Tap(interface="rw-net")


def test_a_port_name_too_long_for_an_interface_asks_for_one() -> None:
    error = refused(f'[vm.a.port.{"n" * 13}]\nkind = "tap"\n')
    assert error.cause is FabricCause.VALUE
    assert "is no name for a new interface" in error.message


@pytest.mark.parametrize(
    ("old", "new", "key"),
    [
        ("interface =", "interfase =", "'interface'"),
        ("queues = 2", "queue = 2", "'queues'"),
        ("link_bytes", "link_byte", "'link_bytes'"),
        ('default = "allow"', 'default = "allow"\ndefalt = 1', "'default'"),
        ("destination_port", "destination-port", "'destination_port'"),
    ],
)
def test_an_unknown_key_is_named_with_its_line_and_the_nearest_known_one(old: str, new: str, key: str) -> None:
    error = refused_after(old, new)
    assert error.cause is FabricCause.UNKNOWN_KEY
    assert f"did you mean {key}" in error.message
    wrong = new.rsplit("\n", maxsplit=1)[-1].split(" ", maxsplit=1)[0]
    assert error.where == line_of(wrong, GOOD.replace(old, new, 1))


def test_an_unknown_table_is_refused() -> None:
    error = refused(GOOD + "[vms.other]\n")
    assert error.cause is FabricCause.UNKNOWN_KEY
    assert "limits, vm, link" in error.message


@pytest.mark.parametrize(
    "addition",
    ["[vm.client.port.net]\n", '[link.client-firewall]\nends = ["client.net", "firewall.inside"]\n', "queues = 2\n"],
)
def test_a_duplicate_name_is_refused_with_its_line(addition: str) -> None:
    error = refused(GOOD + addition)
    assert error.cause is FabricCause.DUPLICATE
    assert error.where == f"fabric.toml:{GOOD.count(chr(10)) + 1}"


def test_a_syntax_error_is_refused_with_its_line() -> None:
    error = refused_after("mtu = 1500", "mtu = = 1500")
    assert error.cause is FabricCause.SYNTAX
    assert error.where == line_of("mtu")


def test_one_interface_name_twice_in_a_vm_is_refused() -> None:
    text = GOOD + '[vm.client.port.other]\nkind = "tap"\ninterface = "rway0"\n'
    error = refused(text)
    assert error.cause is FabricCause.DUPLICATE
    assert "'net'" in error.message
    assert error.where == f"fabric.toml:{text.count(chr(10))}"


def test_one_interface_name_in_two_vms_is_fine() -> None:
    parse_config(GOOD + '[vm.server.port.net]\nkind = "tap"\ninterface = "rway0"\n', "fabric.toml")


def test_a_port_used_by_two_links_is_refused() -> None:
    error = refused(GOOD + '[link.second]\nends = ["firewall.inside", "firewall.outside"]\n')
    assert error.cause is FabricCause.PORT_USED
    assert "'client-firewall'" in error.message
    assert error.where == f"fabric.toml:{GOOD.count(chr(10)) + 2}"


@pytest.mark.parametrize("end", ["client.nett", "clint.net", "client", ".net", "client.", "client.net.more", ""])
def test_a_link_to_nowhere_is_refused(end: str) -> None:
    error = refused_after('"client.net"', f'"{end}"')
    assert error.cause is FabricCause.NOWHERE
    assert error.where == line_of("ends")


def test_a_link_to_nowhere_names_the_nearest_port() -> None:
    assert "did you mean 'client.net'" in refused_after('"client.net"', '"client.nett"').message


@pytest.mark.parametrize("ends", ["[]", '["client.net"]', '["client.net", "firewall.inside", "firewall.outside"]'])
def test_a_link_has_exactly_two_ends(ends: str) -> None:
    assert refused_after('["client.net", "firewall.inside"]', ends).cause is FabricCause.NOWHERE


def test_a_link_from_a_port_to_itself_is_refused() -> None:
    error = refused_after('["client.net", "firewall.inside"]', '["client.net", "client.net"]')
    assert error.cause is FabricCause.SAME_END


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("queues", value) for value in (0, 17, -1, 2**70)),
        *(("slots", value) for value in (0, 32, 63, 1000, 65536, -64)),
        *(("slot_payload", value) for value in (0, 255, 257, 16448, 2**32 + 2048)),
    ],
)
def test_a_size_out_of_range_is_refused_at_its_key(key: str, value: int) -> None:
    error = refused_after("queues = 2", f"{key} = {value}")
    assert error.cause is FabricCause.SIZE
    assert error.where == line_of("queues = 2")
    assert error.message.startswith(f"link.client-firewall.{key}:")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("mtu = 1500", "mtu = true"),
        ("mtu = 1500", "mtu = 1500.0"),
        ("mtu = 1500", 'mtu = "1500"'),
        ("queues = 2", "queues = nan"),
        ("queues = 2", "huge_pages = 1"),
        ('"10.77.0.1/24"', "10"),
        ('interface = "rway0"', "interface = []"),
    ],
)
def test_a_value_of_the_wrong_type_is_refused_at_its_line(old: str, new: str) -> None:
    error = refused_after(old, new)
    assert error.cause is FabricCause.TYPE
    assert error.where == line_of(old)


@pytest.mark.parametrize("text", ["vm = 3", "link = []", "[vm]\nclient = 3", "[vm.client]\nport = 1", "limits = 1"])
def test_a_value_where_a_table_belongs_is_refused(text: str) -> None:
    error = refused(text)
    assert error.cause is FabricCause.TYPE
    assert error.where.startswith("fabric.toml:")


def test_a_missing_key_is_named() -> None:
    error = refused_after('kind = "tap"', "")
    assert error.cause is FabricCause.MISSING_KEY
    assert "kind is missing" in error.message
    assert error.where == line_of("[vm.client.port.net]")


@pytest.mark.parametrize("name", ['"a/b"', '".."', '"a\\u0000"', "A", f'"{"a" * 300}"', '"раyment"', '""', '"a.b"'])
def test_a_vm_name_that_could_be_mistaken_is_refused(name: str) -> None:
    assert refused(f'[vm.{name}.port.net]\nkind = "local"\n').cause is FabricCause.NAME


@pytest.mark.parametrize("name", ['"a/b"', '".."', "A", '"' + "a" * 64 + '"'])
def test_a_link_or_port_name_that_could_be_mistaken_is_refused(name: str) -> None:
    assert refused(f'[vm.a.port.{name}]\nkind = "local"\n').cause is FabricCause.NAME
    assert refused(f"[link.{name}]\nends = []\n").cause is FabricCause.NAME


@pytest.mark.parametrize("interface", ["", "a" * 16, "a/b", "..", "a b", "a:1", "rw%d"])
def test_an_impossible_interface_name_is_refused(interface: str) -> None:
    assert refused_after('"rway0"', f'"{interface}"').cause is FabricCause.VALUE


@pytest.mark.parametrize("mac", ["", "02:00:00:00:00", "03:00:00:00:00:01", "00:00:00:00:00:00", "02-00-00-00-00-01"])
def test_an_impossible_mac_is_refused(mac: str) -> None:
    assert refused_after("mtu = 1500", f'mac = "{mac}"').cause is FabricCause.VALUE


@pytest.mark.parametrize("address", ["10.0.0.256/8", "10.0.0.1/33", "host"])
def test_an_impossible_address_is_refused(address: str) -> None:
    assert refused_after("10.77.0.1/24", address).cause is FabricCause.VALUE


@pytest.mark.parametrize("kind", ["ivshmem", "nic"])
def test_a_kind_of_a_later_release_says_so(kind: str) -> None:
    error = refused_after('kind = "tap"', f'kind = "{kind}"')
    assert error.cause is FabricCause.KIND
    assert "comes with a later release" in error.message


def test_an_unknown_carrier_is_refused() -> None:
    text = '[vm.a]\ncarrier = "pigeon"\n'
    error = refused(text)
    assert (error.cause, error.where) == (FabricCause.VALUE, "fabric.toml:2")
    assert "use 'fd'" in error.message
    assert parse_config(text.replace("pigeon", "fd"), "fabric.toml").vms["a"].carrier == "fd"


def test_an_unknown_kind_is_refused() -> None:
    assert refused_after('kind = "tap"', 'kind = "tun"').cause is FabricCause.KIND


def test_tap_settings_on_a_local_port_are_refused() -> None:
    assert refused_after('kind = "local"', 'kind = "local"\nmtu = 1500').cause is FabricCause.KIND


@pytest.mark.parametrize("mtu", [0, 67, 65536])
def test_an_mtu_out_of_range_is_refused(mtu: int) -> None:
    assert refused_after("mtu = 1500", f"mtu = {mtu}").cause is FabricCause.MTU


def test_an_mtu_that_the_link_cannot_carry_is_refused_with_the_largest_that_it_can() -> None:
    small = GOOD.replace("queues = 2", "slots = 64\nslot_payload = 256").replace("mtu = 1500", "mtu = 9000")
    error = refused(small)
    assert error.cause is FabricCause.MTU
    assert error.where == line_of("mtu", small)
    largest = int(error.message.split("use at most ")[1].split(",")[0])
    parse_config(small.replace("9000", str(largest)), "fabric.toml")
    assert refused(small.replace("9000", str(largest + 1))).cause is FabricCause.MTU


@pytest.mark.parametrize("delay", ["-1", "3601", "nan", '"1"'])
def test_an_impossible_carrier_delay_is_refused(delay: str) -> None:
    assert refused_after("mtu = 1500", f"carrier_delay = {delay}").cause in (FabricCause.VALUE, FabricCause.TYPE)


def test_a_carrier_delay_may_be_a_fraction_of_a_second() -> None:
    config = parse_config(GOOD.replace("mtu = 1500", "carrier_delay = 0.1"), "fabric.toml")
    settings = config.port(EndName("client", "net")).settings
    assert isinstance(settings, Tap)
    assert settings.carrier_delay_ms == 100
    assert refused_after('kind = "local"', 'kind = "local"\ncarrier_delay = 1').cause is FabricCause.KIND


@pytest.mark.parametrize("mtu", [68, 1279])
def test_an_mtu_that_ipv6_does_not_take_is_refused_beside_an_ipv6_address(mtu: int) -> None:
    text = GOOD.replace("mtu = 1500", f"mtu = {mtu}")
    parse_config(text, "fabric.toml")  # IPv4 takes it
    text = text.replace('["10.77.0.1/24"]', '["10.77.0.1/24", "fd00::1/64"]')
    error = refused(text)
    assert (error.cause, error.where) == (FabricCause.MTU, line_of("mtu", text))
    assert "use at least 1280" in error.message
    parse_config(text.replace(str(mtu), "1280"), "fabric.toml")


PAIR = """\
[vm.a.port.p]
kind = "tap"
@a
[vm.b.port.p]
kind = "tap"
@b
[link.wire]
ends = ["a.p", "b.p"]
"""
CHAIN = """\
[vm.a.port.p]
kind = "tap"
@a
[vm.fw.port.in]
kind = "local"
[vm.fw.port.out]
kind = "local"
[vm.fw.stack]
forward = [["in", "out"]]
default = "deny"
[vm.b.port.p]
kind = "tap"
@b
[link.left]
ends = ["a.p", "fw.in"]
[link.right]
ends = ["fw.out", "b.p"]
"""


@pytest.mark.parametrize("fabric", [PAIR, CHAIN], ids=["pair", "chain"])
@pytest.mark.parametrize(
    ("first", "second"),
    [
        ('mac = "02:00:00:00:00:0a"', 'mac = "02:00:00:00:00:0A"'),
        ('address = ["10.0.0.1/24"]', 'address = ["10.0.0.2/24", "10.0.0.1/8"]'),
        ('address = ["fd00::1/64"]', 'address = ["fd00:0::1/64"]'),
        ('address = ["fe80::1/64"]', 'address = ["fe80:0::1/64"]'),
    ],
)
def test_what_both_ends_of_a_link_or_a_chain_have_is_refused(fabric: str, first: str, second: str) -> None:
    text = fabric.replace("@a", first).replace("@b", second)
    error = refused(text)
    assert (error.cause, error.where) == (FabricCause.DUPLICATE, line_of(second, text))
    assert "'a.p'" in error.message


def test_the_same_address_on_two_ports_of_a_vm_is_refused_unless_it_is_link_local() -> None:
    two = """\
[vm.a.port.p]
kind = "tap"
address = ["@/24"]
[vm.a.port.q]
kind = "tap"
address = [ "@/24"]
"""
    text = two.replace("@", "10.0.0.1")
    error = refused(text)
    assert (error.cause, error.where) == (FabricCause.DUPLICATE, line_of("address = [ ", text))
    parse_config(two.replace("@", "fe80::1"), "fabric.toml")


def test_the_same_address_twice_on_one_port_is_refused() -> None:
    assert refused_after('["10.77.0.1/24"]', '["10.77.0.1/24", "10.77.0.1/16"]').cause is FabricCause.DUPLICATE


def test_ports_that_nothing_joins_may_have_the_same_mac_and_address() -> None:
    same = 'mac = "02:00:00:00:00:0a"\naddress = ["10.0.0.1/24"]'
    parse_config(PAIR.partition("[link")[0].replace("@a", same).replace("@b", same), "fabric.toml")


def test_a_link_over_the_limit_is_refused() -> None:
    error = refused_after('"1 GiB"', '"1 MiB"')
    assert error.cause is FabricCause.LIMIT
    assert error.where == line_of("[link.client-firewall]")


def test_a_vm_whose_links_are_over_the_limit_is_refused() -> None:
    error = refused_after('link_bytes = "1 GiB"', 'vm_bytes = "1 MiB"')
    assert error.cause is FabricCause.LIMIT
    assert "limits.vm_bytes" in error.message


@pytest.mark.parametrize("size", ['"1 GB"', '"-1"', '"1.5 GiB"', "0", "-5", '""', '"9999999 TiB"'])
def test_an_impossible_size_is_refused(size: str) -> None:
    error = refused_after('"1 GiB"', size)
    assert error.cause is FabricCause.VALUE
    assert error.where == "fabric.toml:2"


@pytest.mark.parametrize("forward", ['[["inside"]]', '[["inside", "nowhere"]]', '[["inside", "inside"]]'])
def test_forward_takes_pairs_of_local_ports_each_once(forward: str) -> None:
    error = refused_after('[["inside", "outside"]]', forward)
    assert error.cause is FabricCause.FORWARD
    assert error.where == line_of("forward")


def test_forward_refuses_a_tap_port() -> None:
    error = refused(GOOD + '[vm.client.stack]\nforward = [["net", "net"]]\ndefault = "allow"\n')
    assert error.cause is FabricCause.FORWARD
    assert "is of kind 'tap'" in error.message


def chain_of(pairs: int, first: str, second: str) -> str:
    """A VM that forwards between pairs of ports, each pair between links with these settings."""
    text = "[vm.fw.stack]\ndefault = 'allow'\nforward = ["
    text += ", ".join(f"['i{n}', 'o{n}']" for n in range(pairs)) + "]\n"
    for n in range(pairs):
        text += "".join(
            f"[vm.fw.port.{side}{n}]\nkind = 'local'\n[vm.{side}{n}.port.p]\nkind = 'local'\n" for side in "io"
        )
        text += (
            f"[link.i{n}]\nends = ['i{n}.p', 'fw.i{n}']\n{first}\n[link.o{n}]\nends = ['fw.o{n}', 'o{n}.p']\n{second}\n"
        )
    return text


def test_forwarding_between_links_of_different_largest_frames_is_refused() -> None:
    error = refused(chain_of(1, "slots = 1024", "slots = 64\nslot_payload = 256"))
    assert error.cause is FabricCause.SIZE
    assert "65664" in str(error)
    assert "8192" in str(error)
    parse_config(chain_of(1, "slots = 1024", "slots = 512\nqueues = 2"), "fabric.toml")


def test_more_forward_loops_than_a_filter_has_readers_are_refused() -> None:
    error = refused(chain_of(5, "queues = 16\nslots = 64", "queues = 16\nslots = 64"))
    assert error.cause is FabricCause.LIMIT
    assert "80 loops" in str(error)
    parse_config(chain_of(4, "queues = 16\nslots = 64", "queues = 16\nslots = 64"), "fabric.toml")


def test_a_bad_rule_is_named_with_its_line() -> None:
    error = refused_after("destination_port = 23", "destination_port = 65536")
    assert error.cause is FabricCause.RULE
    assert "rule 'no-telnet'" in error.message
    assert error.where == line_of("destination_port = 23")


def test_two_rules_of_one_name_are_refused_at_the_second() -> None:
    second = '\n[[vm.firewall.stack.rule]]\nname = "no-telnet"\naction = "allow"\n'
    error = refused(GOOD + second)
    assert error.cause is FabricCause.RULE
    assert error.where == f"fabric.toml:{GOOD.count(chr(10)) + 3}"


def test_more_rules_than_possible_are_refused() -> None:
    rules = "".join(f'[[vm.firewall.stack.rule]]\nname = "r{n}"\naction = "deny"\n' for n in range(1025))
    assert refused(GOOD + rules).cause is FabricCause.RULE


def test_text_that_looks_like_a_key_inside_an_array_misleads_nobody() -> None:
    text = GOOD.replace('[["inside", "outside"]]', '[\n  [\n"inside"\n, "nowhere"]\n]')
    assert refused(text).where == line_of("forward", text)


@pytest.mark.parametrize("text", ["x = " + "[" * 40_000, "x = " + "9" * 10_000, "x = " + "{a=" * 5000])
def test_a_file_made_to_exhaust_the_parser_is_refused(text: str) -> None:
    assert refused(text).cause is FabricCause.SYNTAX


def file_refused(path: Path) -> FabricError:
    with pytest.raises(FabricError) as caught:
        read_config(path)
    assert str(path) in str(caught.value)
    return caught.value


def test_what_a_full_ring_is_to_do_is_one_of_two_words() -> None:
    error = refused_after("queues = 2", 'full = "block"')
    assert error.where == line_of("queues = 2")
    assert (error.cause, 'use "wait" or "drop"' in error.message) == (FabricCause.VALUE, True)
    for word in ("wait", "drop"):
        config = parse_config(GOOD + f'full = "{word}"', "fabric.toml")
        assert config.links["client-firewall"].full == word
    assert parse_config(GOOD, "fabric.toml").links["client-firewall"].full is None


def test_a_link_is_not_to_wait_where_its_forwarder_cannot() -> None:
    error = refused(chain_of(1, "queues = 1", 'queues = 4\nfull = "wait"'))
    assert error.cause is FabricCause.VALUE
    assert "of 4" in error.message
    assert "give both the same queues" in error.message
    parse_config(chain_of(1, "queues = 4", 'queues = 4\nfull = "wait"'), "fabric.toml")
    parse_config(chain_of(1, "queues = 1", 'queues = 4\nfull = "drop"'), "fabric.toml")


@pytest.mark.parametrize("key", ["mtu", "queues", "link_bytes"])
def test_a_number_too_long_to_be_printed_is_refused(key: str) -> None:
    text = {"mtu": "mtu = 1500", "queues": "queues = 2", "link_bytes": 'link_bytes = "1 GiB"'}[key]
    error = refused_after(text, f"{key} = 0x{'f' * 6000}")
    assert error.cause is FabricCause.SIZE
    assert error.where == line_of(text)


def test_a_key_of_very_many_parts_is_refused_before_it_is_parsed() -> None:
    error = refused(GOOD + "[" + ".".join("a" * 8000) + "]\n")
    assert error.cause is FabricCause.UNKNOWN_KEY
    assert error.where == f"fabric.toml:{GOOD.count(chr(10)) + 1}"


@pytest.mark.parametrize(
    "address", ["10.77.0.1", "10.77.0.1/255.255.255.0", "fe80::1%eth0/64", "224.0.0.1/24", "0.0.0.0/0"]
)
def test_what_is_no_interfaces_address_is_refused(address: str) -> None:
    error = refused_after("10.77.0.1/24", address)
    assert error.cause is FabricCause.VALUE
    assert "write 10.77.0.1/24" in error.message


@pytest.mark.parametrize(
    ("old", "new"),
    [('ends = ["client.net", "firewall.inside"]', "ends = [1, 2]"), ('[["inside", "outside"]]', '["inside"]')],
)
def test_a_list_of_the_wrong_things_is_refused_with_an_example(old: str, new: str) -> None:
    error = refused_after(old, new)
    assert error.cause is FabricCause.TYPE
    assert "what is in the list is to be" in error.message
    assert "write [" in error.message


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert file_refused(tmp_path / "none.toml").cause is FabricCause.FILE


def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert file_refused(tmp_path).cause is FabricCause.FILE


def test_a_huge_file_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "fabric.toml"
    path.write_text("#" * (TEXT_SIZE + 1), encoding="ascii")
    assert file_refused(path).cause is FabricCause.FILE


def test_a_file_that_is_not_utf_8_is_refused_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "fabric.toml"
    path.write_bytes(b"# one\n# \xff\n")
    error = file_refused(path)
    assert error.cause is FabricCause.ENCODING
    assert error.where == f"{path}:2"


@given(st.text(max_size=200))
def test_any_text_is_a_fabric_or_a_fabric_error(text: str) -> None:
    with contextlib.suppress(FabricError):
        parse_config(text, "fabric.toml")


@given(st.integers(0, len(GOOD) - 1), st.integers(0, 20), st.text(max_size=10))
def test_any_change_to_a_good_file_is_a_fabric_or_a_fabric_error(at: int, cut: int, put: str) -> None:
    with contextlib.suppress(FabricError):
        parse_config(GOOD[:at] + put + GOOD[at + cut :], "fabric.toml")


DEFAULT = 'default = "allow"\n'


def test_a_filter_remembers_no_connections_unless_told() -> None:
    stack = parse_config(GOOD, "fabric.toml").vms["firewall"].stack
    assert stack is not None
    assert (stack.connections, stack.timeouts) == (0, Timeouts())


def test_connections_and_their_timeouts_are_read() -> None:
    more = f"{DEFAULT}connections = 65536\ntimeouts = {{ udp = 30 }}\n"
    stack = parse_config(GOOD.replace(DEFAULT, more), "fabric.toml").vms["firewall"].stack
    assert stack is not None
    assert (stack.connections, stack.timeouts) == (65536, Timeouts(udp=30))


@pytest.mark.parametrize("number", [-1, 1, 1023, 16777217])
def test_a_number_of_connections_out_of_range_is_refused(number: int) -> None:
    error = refused_after(DEFAULT, f"{DEFAULT}connections = {number}\n")
    assert error.cause is FabricCause.VALUE
    assert error.message.startswith(f"vm.firewall.stack.connections: {number} cannot be remembered: use 1024 to")


@pytest.mark.parametrize(
    ("timeouts", "cause", "told"),
    [
        ("udp = 0", FabricCause.VALUE, "timeouts.udp: 0 is out of range"),
        ("icmp = 604801", FabricCause.VALUE, "timeouts.icmp: 604801 is out of range"),
        ("tcp = 5", FabricCause.UNKNOWN_KEY, "known here: tcp_opening"),
        ("udp = 1.5", FabricCause.TYPE, "timeouts.udp: is to be a whole number"),
    ],
)
def test_a_timeout_that_cannot_be_is_refused(timeouts: str, cause: FabricCause, told: str) -> None:
    error = refused_after(DEFAULT, f"{DEFAULT}connections = 1024\ntimeouts = {{ {timeouts} }}\n")
    assert error.cause is cause
    assert told in error.message


def test_timeouts_without_connections_are_refused() -> None:
    error = refused_after(DEFAULT, f"{DEFAULT}timeouts = {{ udp = 30 }}\n")
    assert error.cause is FabricCause.VALUE
    assert "say how many with connections = 65536" in error.message
