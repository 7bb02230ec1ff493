//! How many handles a guest may hold, and so how much the host keeps for them.
//!
//! A handle costs a guest nothing of its own memory, and the host up to 1,280 bytes: those of a
//! call of WASI 0.3 that waits for a clock. So a guest with less memory may hold fewer.
//!
//! A call of WASI 0.3 that waits for a file keeps its path as well. So a guest that may have files
//! passes less in one call, and holds fewer handles.

use super::needs::{Concurrency, HandleTables, Passing};

/// Handles of one instance, however much memory it may have. With one more, it traps.
const MAX: usize = 10_000;

/// Handles of one instance, however little memory it may have.
const MIN: usize = 256;

/// Handles of one instance, however many tables of handles it has.
const MIN_OF_MANY_TABLES: usize = 64;

/// Bytes of `--max-memory` for each handle.
const SHARE: usize = 4 << 10;

/// Bytes that the host keeps for a handle, at most. `memory.rs` of the tests measures them.
#[cfg(test)]
const BYTES: usize = 1280;

/// Entries of WASI for a guest that has files or sockets. Each of these keeps a descriptor of the
/// host open.
const MAX_GRANTED: usize = 256;

/// Handles of all kinds for a guest that has files or sockets and makes calls concurrently.
const MAX_CONCURRENT_GRANTED: usize = 512;

/// Bytes that a guest may pass to the host in one call. With more, it traps. A write to a stream is
/// not bounded by it, since its bytes stay in the guest's memory.
const CALL_BYTES: usize = 1 << 20;

/// The same for a guest that has files or sockets and makes calls concurrently, or whose parts can
/// exchange values: what a stream of WASI 0.2 takes in one call, and a path.
///
/// A stream or future between two parts passes values other than numbers as [`wasmtime`]'s `Val`,
/// all values of a write at once. These take up to 26 times what wasmtime charges for them: a set of
/// 26 flags takes 1,656 bytes, and is charged with 66.
///
/// [`wasmtime`]: wasmtime::component::Val
const FEW_CALL_BYTES: usize = (64 << 10) + (4 << 10);

/// Bytes of a string in UTF-8 for each byte of the guest, in the other encodings. A byte of Latin-1
/// takes up to two. The host decodes UTF-16 to up to three bytes for two, in a string that has
/// doubled as it grew.
const WIDTH: usize = 2;

/// Handles beyond these for each connection that an instance may have: the ends of its streams and
/// futures, and what the guest waits for them by, with room for as many of the guest's own.
const PER_CONNECTION: usize = 16;

/// Entries that wasmtime keeps for a handle, at most: a task, its thread and its set of waitables.
const ENTRIES: usize = 3;

/// Entries of the calls that the host itself makes.
const ENTRIES_OF_HOST: usize = 64;

/// Entries for a guest that has files or sockets and makes calls concurrently. A stream from a file
/// to standard output takes three, and keeps the file open without a handle.
const ENTRIES_GRANTED: usize = 768;

/// The bounds of one instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Handles {
    /// Handles of the guest, of all kinds.
    pub(super) all: usize,
    /// Entries in the table of WASI: streams, files, sockets, and what waits for them.
    pub(super) of_wasi: usize,
    /// Entries in the table of wasmtime: tasks, streams, futures, and what waits for them. This
    /// bounds what has no handle any more.
    pub(super) concurrent: usize,
    /// Bytes that the guest may pass to the host in one call.
    pub(super) call_bytes: usize,
}

impl Handles {
    /// The bounds of an instance with `max_memory` bytes. `share` is the number of connections that
    /// may share it, or 0. `granted` says whether it may have files or sockets. With more `tables`
    /// it has fewer handles, so that all tables together stay as large. `passing` says how it passes
    /// values.
    pub(super) fn of(
        max_memory: usize,
        share: usize,
        granted: bool,
        concurrency: Concurrency,
        tables: HandleTables,
        passing: Passing,
    ) -> Self {
        let more = share.saturating_mul(PER_CONNECTION);
        let own = (max_memory / SHARE).clamp(MIN, MAX);
        let confined = granted && concurrency == Concurrency::With;
        let all = if confined {
            own.min(MAX_CONCURRENT_GRANTED)
        } else {
            own
        };
        let call_bytes = if confined || passing.between_parts {
            FEW_CALL_BYTES
        } else {
            CALL_BYTES
        };
        let width = if passing.wide_strings { WIDTH } else { 1 };
        let entries = if confined {
            ENTRIES_GRANTED
        } else {
            all.saturating_mul(ENTRIES)
        };
        let of_wasi = if granted { MAX_GRANTED } else { all };
        let in_tables = (all.saturating_add(more) / tables.times()).max(MIN_OF_MANY_TABLES);
        Self {
            all: in_tables,
            of_wasi: of_wasi.saturating_add(more),
            concurrent: entries
                .saturating_add(more.saturating_mul(ENTRIES))
                .saturating_add(ENTRIES_OF_HOST),
            call_bytes: call_bytes / width,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FEW: HandleTables = HandleTables::FEW;

    /// A guest of one part.
    const PLAIN: Passing = Passing {
        between_parts: false,
        wide_strings: false,
    };

    #[test]
    fn a_guest_with_less_memory_holds_fewer() {
        let all = |max_memory| Handles::of(max_memory, 0, false, Concurrency::With, FEW, PLAIN).all;
        assert_eq!(all(64 << 20), 10_000);
        assert_eq!(all(usize::MAX), 10_000);
        assert_eq!(all(4 << 20), 1024);
        assert_eq!(all(0), 256);
        for mebibytes in 1..64 {
            let memory = mebibytes << 20;
            assert!(all(memory) * BYTES <= memory / 3, "{mebibytes} MiB");
        }
    }

    #[test]
    fn calls_that_wait_for_files_keep_little() {
        let of = |concurrency| Handles::of(64 << 20, 0, true, concurrency, FEW, PLAIN);
        let plain = of(Concurrency::Without);
        assert_eq!((plain.all, plain.of_wasi), (10_000, 256));
        let concurrent = of(Concurrency::With);
        assert_eq!((concurrent.all, concurrent.of_wasi), (512, 256));
        assert!(concurrent.all * concurrent.call_bytes <= 34 << 20);
        assert_eq!(concurrent.concurrent, 832);
    }

    #[test]
    fn parts_that_exchange_values_pass_few_bytes_in_a_call() {
        let of = |passing| Handles::of(64 << 20, 0, false, Concurrency::With, FEW, passing);
        let parts = of(Passing {
            between_parts: true,
            ..PLAIN
        });
        assert_eq!((parts.all, parts.call_bytes), (10_000, 68 << 10));
        assert_eq!(of(PLAIN).call_bytes, 1 << 20);
        // Measured: bytes of the host for each that is charged.
        assert!(parts.call_bytes * 26 < 2 << 20);
    }

    #[test]
    fn strings_that_take_twice_as_much_in_the_host_count_twice() {
        let wide = Passing {
            wide_strings: true,
            ..PLAIN
        };
        for (granted, bytes) in [(false, 512 << 10), (true, 34 << 10)] {
            let handles = Handles::of(64 << 20, 0, granted, Concurrency::With, FEW, wide);
            assert_eq!(handles.call_bytes, bytes);
        }
    }

    #[test]
    fn connections_of_a_shared_instance_bring_handles_of_their_own() {
        let handles = Handles::of(1 << 20, 100, true, Concurrency::With, FEW, PLAIN);
        assert_eq!((handles.all, handles.of_wasi), (256 + 1600, 256 + 1600));
    }

    #[test]
    fn all_tables_of_handles_together_stay_small() {
        // Measured: bytes of a table for each handle that it had at a time.
        let slot = 20;
        for component_instances in 0..=1000 {
            let tables = HandleTables::of(component_instances);
            for max_memory in [1 << 20, 4 << 20, 64 << 20] {
                let all = Handles::of(max_memory, 0, false, Concurrency::Without, tables, PLAIN).all;
                assert!(all * component_instances as usize * slot < 2 << 20);
                let few = component_instances <= 8;
                assert_eq!(
                    few,
                    all == (max_memory / SHARE).clamp(MIN, MAX),
                    "{component_instances}"
                );
            }
        }
    }
}
