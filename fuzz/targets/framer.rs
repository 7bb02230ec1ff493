//! `cargo fuzz run framer`
#![no_main]

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| fuzz::framer::run(bytes));
