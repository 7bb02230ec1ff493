//! The bounds that every attack is held to. `SECURITY.md` states them.

use super::Figures;

/// Outcomes that no attack may cause.
pub(super) const NEVER: [&str; 3] = ["host-panic", "start-failed", "drained"];

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

/// Bytes that a host may take under any attack, whatever the number of connections: threads,
/// compiled code, and what the allocator keeps.
const FIXED: u64 = 24 * MIB;

/// Bytes that a connection may take beside its `max-memory`.
const BESIDE: u64 = MIB + 256 * KIB;

/// Bytes of a connection whose client does not read, or whose guest does not.
const STALLED: u64 = 85 * KIB;

/// The bounds of one attack.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Bytes of the host beside [`FIXED`], in all.
    memory: u64,
    /// The same for each connection.
    each: u64,
    /// Milliseconds within which 99% of the canary's round trips end, and all of them.
    p99_ms: f64,
    max_ms: f64,
}

/// Caps of the canary that are far from what is measured, so that a machine with ten busy processes
/// for each core does not exceed them. An attack that stops the canary does.
const FAR: (f64, f64) = (2000.0, 6000.0);

/// Each connection has `mebibytes` of memory, and what the host holds for it.
pub(super) const fn memory(mebibytes: u64) -> Bounds {
    Bounds {
        memory: 0,
        each: mebibytes * MIB + BESIDE,
        p99_ms: FAR.0,
        max_ms: FAR.1,
    }
}

/// Each connection has come to a halt.
pub(super) const fn stalled() -> Bounds {
    Bounds {
        each: STALLED,
        ..memory(0)
    }
}

/// The host takes `mebibytes` beside its connections.
pub(super) const fn host(mebibytes: u64) -> Bounds {
    Bounds {
        memory: mebibytes * MIB,
        ..memory(0)
    }
}

impl Bounds {
    /// The bounds that `figures` exceed with so many connections, each as a sentence.
    pub(super) fn exceeded_by(&self, figures: &Figures, connections: u64) -> Vec<String> {
        let mut exceeded = Vec::new();
        let (grown, most) = (
            figures.most.saturating_sub(figures.before),
            FIXED + self.memory + connections * self.each,
        );
        if grown > most {
            exceeded.push(format!(
                "the host took {} KiB more: expected at most {} KiB",
                grown / KIB,
                most / KIB
            ));
        }
        for (what, quantile, most) in [("p99", 0.99, self.p99_ms), ("maximum", 1.0, self.max_ms)] {
            let found = figures.canary_ms(quantile);
            if found > most {
                exceeded.push(format!(
                    "the {what} of the canary is {found:.0} ms: expected at most {most:.0} ms"
                ));
            }
        }
        exceeded
    }
}

#[cfg(test)]
mod tests {
    use hdrhistogram::Histogram;

    use super::*;

    fn figures(most: u64, canary_ms: &[u64]) -> Figures {
        let mut canary = Histogram::new(3).unwrap();
        for ms in canary_ms {
            canary.record(ms * 1_000_000).unwrap();
        }
        Figures {
            canary,
            before: MIB,
            most,
            outcomes: Vec::new(),
        }
    }

    #[test]
    fn a_bound_that_is_reached_is_not_exceeded() {
        let bounds = memory(4);
        let most = MIB + FIXED + 3 * (4 * MIB + BESIDE);
        assert!(bounds.exceeded_by(&figures(most, &[1, 1900]), 3).is_empty());
        let exceeded = bounds.exceeded_by(&figures(most + KIB, &[1]), 3);
        assert!(
            exceeded.len() == 1 && exceeded[0].contains("KiB more"),
            "{exceeded:?}"
        );
        let exceeded = stalled().exceeded_by(&figures(0, &[1, 6100]), 3);
        assert!(exceeded.len() == 2 && exceeded[0].contains("p99"), "{exceeded:?}");
    }
}
