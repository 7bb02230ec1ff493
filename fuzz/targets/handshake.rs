//! `cargo fuzz run handshake`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::handshake::run(bytes));
