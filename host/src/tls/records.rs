//! Counts the records of a connection that bring no content.

use thiserror::Error;

/// Records that a peer may send beyond bytes of content. Up to 200 wait for the content between
/// them to be read. Usual peers send a few that change keys.
const MAX_EXCESS: u32 = 1_000;

/// Records in one turn. The shortest that change keys take a few microseconds each.
const MAX_IN_TURN: u32 = 128;

/// Bytes of the header of a record (RFC 8446, section 5.1).
const HEADER: u8 = 5;

/// A peer has sent too many records without content.
#[derive(Debug, Error)]
#[error("the client sent {MAX_EXCESS} records more than bytes of content")]
pub(super) struct TooMany;

/// Follows the records that a peer sends, by their headers.
///
/// rustls reads on until there is content. A peer can send records without any, such as empty ones
/// and changes of keys, for as long as it likes, and each costs as much as many bytes of content.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// Bytes of the current header that have arrived.
    header: u8,
    /// Bytes of the current record that are still to come, as far as the header says.
    left: u16,
    /// Records since the connection has waited for its peer last.
    in_turn: u32,
    /// Records beyond bytes of content.
    excess: u32,
}

impl Records {
    /// Counts the records that begin in `bytes`. A record counts once its header is complete,
    /// however it is divided.
    pub(super) fn arrive(&mut self, mut bytes: &[u8]) {
        while let Some((&byte, rest)) = bytes.split_first() {
            if self.header < HEADER {
                // The last two bytes are the length.
                self.left = self.left << 8 | u16::from(byte);
                self.header += 1;
                bytes = rest;
                if self.header == HEADER {
                    self.in_turn = self.in_turn.saturating_add(1);
                    self.excess = self.excess.saturating_add(1);
                }
            } else {
                let count = u16::try_from(bytes.len()).unwrap_or(u16::MAX).min(self.left);
                bytes = &bytes[usize::from(count)..];
                self.left -= count;
            }
            if self.header == HEADER && self.left == 0 {
                self.header = 0;
            }
        }
    }

    /// Counts bytes of content.
    pub(super) fn content(&mut self, count: usize) {
        let count = u32::try_from(count).unwrap_or(u32::MAX);
        self.excess = self.excess.saturating_sub(count);
    }

    /// Forgets the records of the handshake.
    pub(super) fn forget(&mut self) {
        self.excess = 0;
    }

    /// Fails if there were too many without content.
    pub(super) fn check(&self) -> Result<(), TooMany> {
        if self.excess > MAX_EXCESS {
            Err(TooMany)
        } else {
            Ok(())
        }
    }

    /// Returns whether other connections should have their turn.
    pub(super) fn is_turn_over(&self) -> bool {
        self.in_turn >= MAX_IN_TURN
    }

    /// Begins another turn.
    pub(super) fn begin_turn(&mut self) {
        self.in_turn = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A record of `length` bytes.
    fn record(length: u16) -> Vec<u8> {
        let mut record = vec![23, 3, 3];
        record.extend(length.to_be_bytes());
        record.resize(record.len() + usize::from(length), 0xff);
        record
    }

    #[test]
    fn records_count_once_however_they_are_divided() {
        let bytes: Vec<u8> = [22, 0, 0x4000 + 256, 1, 0xffff].map(record).concat();
        for size in [1, 2, 3, 5, 7, 4096, bytes.len()] {
            let mut records = Records::default();
            for part in bytes.chunks(size) {
                records.arrive(part);
            }
            assert_eq!((records.in_turn, records.excess), (5, 5), "{size}");
            assert_eq!((records.header, records.left), (0, 0), "{size}");
        }
    }

    #[test]
    fn a_record_that_comes_byte_by_byte_is_one() {
        let mut records = Records::default();
        for byte in record(0x4000) {
            records.arrive(&[byte]);
            assert!(records.check().is_ok() && !records.is_turn_over());
        }
        records.content(0x4000 - 17);
        assert_eq!(records.excess, 0);
    }

    #[test]
    fn content_pays_for_records_and_for_none_to_come() {
        let mut records = Records::default();
        for _ in 0..MAX_EXCESS {
            records.arrive(&record(22));
        }
        assert!(records.check().is_ok());
        records.arrive(&record(22));
        assert!(records.check().is_err());
        records.content(1);
        assert!(records.check().is_ok());
        records.content(1 << 20);
        for _ in 0..=MAX_EXCESS {
            records.arrive(&record(22));
        }
        assert!(records.check().is_err());
    }
}
