//! Every attack.

use super::bounds;
use super::{Attack, Guest, Peers, encrypted, peers};

/// What attacks have in common. It is an attack that does nothing.
const DEFAULT: Attack = Attack {
    name: "none",
    guest: Guest::Built("lines-session"),
    connections: 0,
    max_memory: 1,
    limits: "",
    keys: "",
    host: "",
    listen: "",
    peers: peers::nothing,
    expect: &[],
    never: &[],
    bounds: bounds::memory(1),
};

/// Limits after which guests that do not stop are stopped within an attack.
const CALL: &str = ", max-call-time = \"200ms\"";
const CPU: &str = ", max-cpu-time = \"200ms\"";
const IDLE: &str = ", idle-timeout = \"1s\", first-byte-timeout = \"1s\"";

/// A grant of the directory that has a named pipe and files.
const FILES: &str = "grants = { dirs = [\"{dir}/files::/data\"] }";

/// A module that calls the host without end, in so many connections, with MiB of memory for each.
const fn endless(name: &'static str, text: &'static str, connections: u64, max_memory: u64) -> Attack {
    Attack {
        name,
        guest: Guest::Module(text),
        connections,
        max_memory,
        limits: CPU,
        peers: |stage| peers::again(stage, b""),
        expect: &["cpu-limit"],
        bounds: bounds::memory(max_memory),
        ..DEFAULT
    }
}

/// A program that makes ten calls of one kind, which are as long as they can be, on each
/// connection.
const fn lengthy(name: &'static str, keys: &'static str, peers: Peers) -> Attack {
    Attack {
        name,
        guest: Guest::Built("lengthy"),
        connections: 4,
        max_memory: 64,
        keys,
        peers,
        never: &["guest-trap"],
        bounds: bounds::memory(64),
        ..DEFAULT
    }
}

/// A program that takes more of one kind than it may have.
const fn amass(name: &'static str, peers: Peers) -> Attack {
    Attack {
        name,
        guest: Guest::Built("amass"),
        connections: 8,
        max_memory: 4,
        peers,
        expect: &["guest-trap"],
        bounds: bounds::memory(4),
        ..DEFAULT
    }
}

pub(super) const ALL: &[Attack] = &[
    DEFAULT,
    // Guests that take time.
    Attack {
        name: "loop-session",
        guest: Guest::Built("spin"),
        connections: 8,
        limits: CALL,
        peers: |stage| peers::again(stage, b"!"),
        expect: &["cpu-limit"],
        ..DEFAULT
    },
    Attack {
        name: "loop-streams",
        guest: Guest::Built("moody"),
        connections: 4,
        limits: CPU,
        peers: |stage| peers::again(stage, b"spin\n"),
        expect: &["cpu-limit"],
        ..DEFAULT
    },
    Attack {
        name: "short-calls",
        guest: Guest::Built("restless"),
        connections: 8,
        peers: |stage| peers::again(stage, b"!"),
        ..DEFAULT
    },
    Attack {
        name: "many-clients-compute",
        guest: Guest::Built("primes"),
        connections: 48,
        max_memory: 16,
        peers: |stage| peers::ask(stage, b"1000\n"),
        never: &["cpu-limit"],
        bounds: bounds::memory(16),
        ..DEFAULT
    },
    Attack {
        name: "wait-in-call",
        guest: Guest::Built("sleep"),
        connections: 100,
        limits: CALL,
        peers: |stage| peers::again(stage, b"!"),
        expect: &["cpu-limit"],
        ..DEFAULT
    },
    endless("empty-buffers", include_str!("guests/empty-buffers.wat"), 4, 1),
    endless("write-65-mb", include_str!("guests/large-stdout.wat"), 2, 64),
    endless("log-65-mb", include_str!("guests/large-stderr.wat"), 2, 64),
    endless("fill-1-gib", include_str!("guests/fill.wat"), 1, 1024),
    endless("calls-in-returns", include_str!("guests/returns.wat"), 2, 1),
    // Guests whose calls to the host keep a thread.
    lengthy("poll-list", "", |stage| peers::ask(stage, b"poll 9000\n")),
    lengthy("poll-each", "", |stage| peers::ask(stage, b"poll-each 4900\n")),
    lengthy("log-empty-lines", "", |stage| {
        peers::ask(stage, b"errors 16384\n")
    }),
    lengthy("random-bytes", "", |stage| peers::ask(stage, b"random 65536\n")),
    lengthy("long-paths", FILES, |stage| peers::ask(stage, b"path 1000000\n")),
    // Guests that take memory.
    Attack {
        name: "hoard-memory",
        guest: Guest::Built("hoard"),
        connections: 16,
        max_memory: 8,
        peers: |stage| peers::again(stage, b"6"),
        bounds: bounds::memory(8),
        ..DEFAULT
    },
    Attack {
        name: "hoard-tables",
        guest: Guest::Session(include_str!("../../../guest/hostile/tables/tables.wat")),
        connections: 16,
        peers: |stage| peers::again(stage, b""),
        expect: &["finished"],
        ..DEFAULT
    },
    Attack {
        name: "hoard-handles",
        guest: Guest::Built("handles"),
        connections: 16,
        peers: |stage| peers::again(stage, b"!"),
        expect: &["guest-trap"],
        ..DEFAULT
    },
    Attack {
        name: "hoard-files",
        guest: Guest::Built("errands"),
        connections: 16,
        keys: FILES,
        peers: |stage| peers::again(stage, b"hold-files 300 /data/note\n"),
        expect: &["guest-trap"],
        ..DEFAULT
    },
    Attack {
        name: "hoard-sockets",
        guest: Guest::Built("errands"),
        connections: 10,
        keys: "grants = { allow-outbound = [\"{sink}\"] }",
        peers: peers::hold_sockets,
        ..DEFAULT
    },
    Attack {
        name: "wait-for-pipe",
        guest: Guest::Built("errands"),
        connections: 200,
        keys: FILES,
        peers: |stage| peers::hold(stage, b"read /data/pipe\n"),
        ..DEFAULT
    },
    amass("hoard-pollables", |stage| {
        peers::again(stage, b"pollables 2000\n")
    }),
    amass("hoard-tasks", |stage| peers::again(stage, b"sleeps 2000\n")),
    amass("hoard-streams", |stage| peers::again(stage, b"streams 2000\n")),
    Attack {
        keys: FILES,
        bounds: bounds::memory(4 + 2),
        ..amass("hoard-file-streams", |stage| {
            peers::again(stage, b"file-reads 2000\n")
        })
    },
    Attack {
        keys: FILES,
        bounds: bounds::memory(4 + 6),
        ..amass("hoard-lists", |stage| peers::again(stage, b"begun-lists 2000\n"))
    },
    Attack {
        name: "exchange-flags",
        guest: Guest::Module(include_str!("../../../guest/hostile/exchange/exchange.wat")),
        connections: 8,
        max_memory: 4,
        limits: CPU,
        peers: |stage| peers::again(stage, b""),
        expect: &["cpu-limit"],
        // Values of 2 MiB, and two stacks more.
        bounds: bounds::memory(4 + 4),
        ..DEFAULT
    },
    // Guests that fail.
    Attack {
        name: "trap-at-start",
        guest: Guest::Built("moody"),
        connections: 8,
        keys: "grants = { env = { MOOD = \"trap\" } }",
        peers: |stage| peers::again(stage, b""),
        expect: &["guest-trap", "breaker open"],
        ..DEFAULT
    },
    Attack {
        name: "recurse-in-allocator",
        guest: Guest::Module(include_str!("guests/recurse-allocator.wat")),
        connections: 8,
        peers: |stage| peers::again(stage, b""),
        expect: &["guest-trap"],
        ..DEFAULT
    },
    // Clients.
    Attack {
        name: "read-no-answers",
        guest: Guest::Built("chargen"),
        connections: 500,
        limits: ", write-timeout = \"1s\"",
        peers: |stage| peers::hold(stage, b""),
        expect: &["write-timeout"],
        bounds: bounds::stalled(),
        ..DEFAULT
    },
    Attack {
        name: "send-to-deaf-guest",
        guest: Guest::Built("deaf"),
        connections: 500,
        limits: IDLE,
        peers: peers::fill,
        expect: &["idle-timeout"],
        bounds: bounds::stalled(),
        ..DEFAULT
    },
    Attack {
        name: "reset-storm",
        connections: 4,
        peers: peers::reset,
        expect: &["peer-reset"],
        ..DEFAULT
    },
    Attack {
        name: "slow-proxy-header",
        connections: 200,
        listen: ", proxy-protocol = { from = [\"127.0.0.1\"], timeout = \"1s\" }",
        peers: |stage| peers::dribble(stage, b"PROXY TCP4 192.0.2.1 192.0.2.2 1 2"),
        expect: &["proxy-timeout"],
        ..DEFAULT
    },
    Attack {
        name: "slow-tls-handshake",
        connections: 200,
        listen: ", tls = { certificate = \"{dir}/tls.pem\", key = \"{dir}/tls.key\", timeout = \"1s\" }",
        // The first bytes of a record with a ClientHello of 512 bytes.
        peers: |stage| peers::dribble(stage, b"\x16\x03\x01\x02\0\x01\0\x01\xfc\x03\x03 and so on ..."),
        expect: &["tls-timeout"],
        ..DEFAULT
    },
    Attack {
        name: "tls-client-certificates",
        connections: 32,
        listen: ", tls = { certificate = \"{dir}/tls.pem\", key = \"{dir}/tls.key\", \
                 client-ca = \"{dir}/authority.pem\" }",
        peers: encrypted::show_certificates,
        expect: &["finished"],
        ..DEFAULT
    },
    Attack {
        name: "tls-key-updates",
        connections: 16,
        listen: ", tls = { certificate = \"{dir}/tls.pem\", key = \"{dir}/tls.key\" }",
        peers: encrypted::change_keys,
        expect: &["peer-lost"],
        ..DEFAULT
    },
    Attack {
        name: "hold-admin-port",
        connections: 300,
        host: "[admin]\nlisten = \"127.0.0.1:0\"",
        peers: peers::hold_admin,
        ..DEFAULT
    },
    // Components.
    Attack {
        name: "change-component",
        keys: "watch = true",
        peers: peers::replace,
        expect: &["reloaded"],
        ..DEFAULT
    },
    Attack {
        name: "compile-large",
        guest: Guest::Module("(module (memory (export \"memory\") 1) (func (export \"_start\")))"),
        peers: peers::compile,
        expect: &["reloaded"],
        bounds: bounds::host(1024),
        ..DEFAULT
    },
    Attack {
        name: "preinit-large",
        guest: Guest::Module(include_str!("guests/preinit-small.wat")),
        max_memory: 512,
        keys: "preinit = true",
        peers: peers::initialise,
        expect: &["reload failed"],
        never: &["reloaded"],
        bounds: bounds::host(512),
        ..DEFAULT
    },
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_is_of_one_attack_and_needs_no_quotes() {
        for (at, attack) in ALL.iter().enumerate() {
            let name = attack.name;
            assert!(
                name.chars().all(|c| c.is_ascii_alphanumeric() || c == '-'),
                "{name}"
            );
            assert!(ALL.iter().skip(at + 1).all(|other| other.name != name), "{name}");
        }
    }
}
