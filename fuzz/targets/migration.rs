//! `cargo fuzz run migration`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::migration::run(bytes));
